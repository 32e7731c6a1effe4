//! The lab, drawn.

use tests::lab::{EIP1, EIP2, INTERNET, NODE_DOWN, NODE_UP, POOL, VM1, VM2};

/// The topology with its addresses.
pub(crate) fn topology() -> String {
    let (internet, node_up, node_down) = (INTERNET.to_string(), NODE_UP.to_string(), NODE_DOWN.to_string());
    let (vm1, vm2) = (VM1.to_string(), VM2.to_string());
    format!(
        r"
     internet host                 NAT node                  switch            VMs
    ┌───────────────┐     ┌────────────────────────────┐    ┌────────┐    ┌────────────────┐
    │ {internet:<13} │     │ {node_up:<14} {node_down:>11} │    │        ├────┤ vm1 {vm1:<10} │ ⇄ {EIP1}
    │               ├─────┤ up0    eipnat (XDP)    dn0 ├────┤ bridge │    └────────────────┘
    │ curl, web,    │     │                            │    │        │    ┌────────────────┐
    │ ping, iperf3  │     │ {POOL:<15}            │    │        ├────┤ vm2 {vm2:<10} │ ⇄ {EIP2}
    └───────────────┘     └────────────────────────────┘    └────────┘    └────────────────┘
"
    )
}

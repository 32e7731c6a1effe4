//! Random routes come and go, beside a list of them all.

use ipnet::Ipv4Net;
use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE};
use netlink_packet_route::route::RouteNextHop;
use proptest::prelude::*;

use super::*;

/// What a route is to those who take it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Gateway,
    OnLink,
    Several,
    Blackhole,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Spec {
    net: Ipv4Net,
    table: u8,
    priority: u32,
    way: Way,
}

impl Spec {
    fn message(self) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.destination_prefix_length = self.net.prefix_len();
        message.header.table = self.table;
        message.header.kind =
            if self.way == Way::Blackhole { RouteType::BlackHole } else { RouteType::Unicast };
        let gateway = RouteAttribute::Gateway(RouteAddress::Inet(Ipv4Addr::new(198, 51, 100, 1)));
        message.attributes = match self.way {
            Way::Gateway => vec![gateway],
            Way::Several => vec![RouteAttribute::MultiPath(vec![RouteNextHop::default(); 2])],
            Way::OnLink | Way::Blackhole => Vec::new(),
        };
        if self.net.prefix_len() > 0 {
            message.attributes.push(RouteAttribute::Destination(RouteAddress::Inet(self.net.network())));
        }
        message.attributes.push(RouteAttribute::Priority(self.priority));
        message
    }

    fn is_like(&self, other: &Self) -> bool {
        (self.net, self.table, self.priority) == (other.net, other.table, other.priority)
    }
}

fn spec() -> impl Strategy<Value = Spec> {
    let net = prop::sample::select(vec![
        "0.0.0.0/0",
        "0.0.0.0/1",
        "8.0.0.0/6",
        "8.0.0.0/8",
        "8.8.0.0/16",
        "8.8.8.0/24",
        "8.9.0.0/16",
        "8.9.255.255/32",
        "10.0.0.0/8",
    ]);
    let way = prop_oneof![6 => Just(Way::Gateway), 1 => Just(Way::OnLink), 1 => Just(Way::Several), 1 => Just(Way::Blackhole)];
    let table = prop_oneof![8 => Just(254), 1 => Just(253), 1 => Just(100)];
    (net, table, 0..2_u32, way).prop_map(|(net, table, priority, way)| Spec {
        net: net.parse().unwrap(),
        table,
        priority,
        way,
    })
}

/// How a route comes where there is one in its place.
#[derive(Clone, Copy, Debug)]
enum How {
    Add,
    Replace,
    Append,
    Prepend,
}

#[derive(Clone, Debug)]
enum Change {
    Come(Spec, How),
    Go(prop::sample::Index),
    /// The kernel tells nobody.
    Vanish(prop::sample::Index),
    Forget,
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        6 => (spec(), prop::sample::select(vec![How::Add, How::Replace, How::Append, How::Prepend]))
            .prop_map(|(spec, how)| Change::Come(spec, how)),
        3 => any::<prop::sample::Index>().prop_map(Change::Go),
        1 => any::<prop::sample::Index>().prop_map(Change::Vanish),
        3 => Just(Change::Forget),
    ]
}

const ADDRESSES: [[u8; 4]; 9] = [
    [1, 2, 3, 4],
    [8, 1, 0, 1],
    [8, 8, 0, 1],
    [8, 8, 8, 8],
    [8, 9, 0, 1],
    [8, 9, 255, 255],
    [9, 9, 9, 9],
    [10, 0, 0, 1],
    [200, 0, 0, 1],
];

/// Whoever has a number has the same next hop as all others who have it.
fn check(covering: &Covering, routes: &[Spec]) {
    let numbers = covering.numbers();
    let taken = |address: [u8; 4]| -> Vec<&Spec> {
        let is_on = |route: &&Spec| route.table != 100 && route.net.contains(&Ipv4Addr::from(address));
        routes.iter().filter(is_on).collect()
    };
    let number = |address: [u8; 4]| numbers[usize::from(upper(address.into()))];
    for one in ADDRESSES {
        if number(one) == 0 {
            continue;
        }
        let ways = taken(one);
        assert!(ways.iter().all(|way| matches!(way.way, Way::Gateway | Way::Blackhole)), "{one:?}");
        assert!((1..ways.len()).all(|at| ways[..at].iter().all(|other| !other.is_like(ways[at]))), "{one:?}");
        for other in ADDRESSES.into_iter().filter(|other| number(*other) == number(one)) {
            assert_eq!(ways, taken(other), "{one:?} and {other:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn who_has_a_number_in_common_has_the_next_hop_in_common(changes in prop::collection::vec(change(), 1..24)) {
        let (mut covering, mut routes) = (Covering::default(), Vec::<Spec>::new());
        for change in changes {
            match change {
                Change::Come(spec, how) => {
                    // A table may have the very same once.
                    if routes.contains(&spec) {
                        continue;
                    }
                    let there = routes.iter().position(|route| route.is_like(&spec));
                    let flags = match (there, how) {
                        (None, _) => NLM_F_EXCL | NLM_F_CREATE,
                        (Some(_), How::Add) => continue,
                        (Some(there), How::Replace) => {
                            routes.remove(there);
                            NLM_F_REPLACE
                        }
                        (Some(_), How::Append) => NLM_F_CREATE | NLM_F_APPEND,
                        (Some(_), How::Prepend) => NLM_F_CREATE,
                    };
                    covering.insert(&spec.message(), flags);
                    routes.push(spec);
                }
                Change::Go(index) if !routes.is_empty() => {
                    let spec = routes.remove(index.index(routes.len()));
                    if !covering.remove(&spec.message()) {
                        covering = listed(routes.iter().map(|route| route.message()));
                    }
                }
                Change::Vanish(index) if !routes.is_empty() => {
                    routes.remove(index.index(routes.len()));
                }
                Change::Forget => {
                    covering.forget();
                }
                Change::Go(_) | Change::Vanish(_) => {}
            }
            check(&covering, &routes);
        }
    }
}

fn listed(routes: impl IntoIterator<Item = RouteMessage>) -> Covering {
    let mut covering = Covering::default();
    routes.into_iter().for_each(|route| covering.list(&route));
    covering
}

fn route(net: &str, way: Way) -> RouteMessage {
    Spec { net: net.parse().unwrap(), table: 254, priority: 0, way }.message()
}

#[test]
fn a_default_route_covers_all_that_no_other_route_is_in() {
    let mut covering = listed([
        route("0.0.0.0/0", Way::Gateway),
        route("198.51.100.0/24", Way::OnLink),
        route("10.0.0.0/8", Way::OnLink),
    ]);
    let number =
        |covering: &Covering, address: [u8; 2]| covering.numbers()[usize::from(u16::from_be_bytes(address))];
    assert_eq!(
        [[8, 8], [198, 50], [198, 51], [10, 7]].map(|address| number(&covering, address)),
        [1, 1, 0, 0]
    );
    assert!(covering.remove(&route("198.51.100.0/24", Way::OnLink)));
    assert_eq!(number(&covering, [198, 51]), 0);
    assert!(covering.forget());
    assert_eq!(number(&covering, [198, 51]), 1);
    assert!(covering.remove(&route("0.0.0.0/0", Way::Gateway)) && covering.forget() && !covering.forget());
    assert_eq!(number(&covering, [198, 51]), 0);
}

#[test]
fn of_too_many_routes_those_that_cover_most_have_a_number() {
    let many: Vec<_> = (0..=255).map(|second| route(&format!("20.{second}.0.0/16"), Way::Gateway)).collect();
    let all = [many, vec![route("8.0.0.0/8", Way::Gateway)]].concat();
    let numbers = listed(all).numbers();
    assert_eq!(numbers[0x0800..0x0900], [1; 256]);
    let mut of_many = numbers[0x1400..0x1500].to_vec();
    of_many.sort_unstable();
    assert_eq!(of_many, [vec![0; 2], (2..=255).collect()].concat());
}

#[test]
fn a_route_that_the_kernel_has_learned_is_none() {
    let mut learned = route("8.8.8.8/32", Way::Gateway);
    learned.header.flags = RouteFlags::Cloned;
    let numbers = listed([route("0.0.0.0/0", Way::Gateway), learned]).numbers();
    assert_eq!(numbers[0x0808], 1);
}

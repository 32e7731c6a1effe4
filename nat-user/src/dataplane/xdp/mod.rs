//! The datapath proper: the XDP program on the node's interfaces, and its BPF maps. All of it is pinned, so that it
//! outlives the daemon.
//!
//! [`XdpDataplane::start`] has the maps ready and attaches the program where none runs; the bindings follow; then
//! [`activate`](Dataplane::activate) changes interfaces over that an earlier daemon's program runs on. Where that one
//! had other maps (`generations.rs`), both count until then, and no packet misses a binding.

mod addresses;
mod batch;
mod bpffs;
mod checks;
mod drops;
mod express;
mod fib;
mod findings;
mod front;
mod generations;
mod genl;
mod halves;
mod interfaces;
mod kinds;
mod links;
mod log;
mod maps;
mod meters;
mod netlink;
mod numbers;
mod object;
mod offloads;
mod ports;
mod routes;
mod settle;
mod slow;
mod sysctls;
mod targets;
mod tracer;
mod trials;
mod unload;
mod view;
mod window;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ::log::{error, info, warn};
use anyhow::Context as _;
use aya_log::EbpfLogger;
use nat_common::abi::{ABI_VERSION, Meter, Node};
use rustix::rand::GetRandomFlags;
use rustix::thread::{MembarrierCommand, membarrier};

pub(crate) use self::addresses::may_be_public;
use self::bpffs::PinLock;
use self::fib::Fib;
use self::findings::Findings;
use self::generations::{Generation, Sums};
use self::interfaces::Interface;
use self::maps::Maps;
use self::object::{MapPins, Program};
use self::ports::Ports;
use self::routes::Routes;
use self::settle::{kinds, public_ip};
use self::tracer::XdpTracer;
use self::unload::remove;
pub use self::unload::{LastCounts, unload};
use super::trace::Tracer;
use super::{AddressDrops, Binding, Dataplane, Half, Mended, Owners, Place, Port, Role, Verdicts, slow_path};
use crate::config;
use crate::model::{self, PoolSpec};
use crate::slowpath::SlowPath;

/// In a second.
const NANOSECONDS: u32 = 1_000_000_000;

/// The logger that carries the program's log into the daemon's.
pub type ProgramLogger = EbpfLogger<log::Names>;

/// The XDP program on the node's interfaces, with its maps.
pub struct XdpDataplane {
    config: config::Datapath,
    pools: Vec<PoolSpec>,
    maps: Maps,
    map_pins: MapPins,
    ports: Ports,
    node: Node,
    logger: Option<ProgramLogger>,
    tracer: Option<XdpTracer>,
    /// The maps in use.
    generation: PathBuf,
    /// Whether this start made them.
    is_new: bool,
    /// Earlier ones that count, too.
    earlier: Vec<Generation>,
    /// Whether the program runs on all interfaces; before that, everything can be undone.
    is_active: bool,
    /// None before [`Dataplane::activate`], and where there can be none.
    slow_path: Option<SlowPath>,
    /// Why, as it was told last.
    slow_path_trouble: Option<String>,
    /// Public addresses whose bindings have come and are to be announced.
    arrived: BTreeSet<Ipv4Addr>,
    /// Whether all that are bound are to be announced: who is in an uplink's network may not know of them.
    is_to_announce: bool,
    /// None before [`Dataplane::activate`], and where changes cannot be followed.
    routes: Option<Routes>,
    /// Why, as it was told last.
    routes_trouble: Option<String>,
    /// The program that asks the FIB; loaded when it is needed.
    fib: Option<Fib>,
    /// Keeps every other daemon off the pins.
    lock: Arc<PinLock>,
}

impl XdpDataplane {
    /// Loads the program, and attaches it where none of eipnat's runs. What an earlier daemon left under the pin path is
    /// adopted: its maps where they fit, its counters in any case. Its program goes on until [`Dataplane::activate`];
    /// without that, all of this is undone when it is dropped.
    ///
    /// # Errors
    /// [`KeyError`](crate::config::KeyError) where another configuration would mend it. What was not there before is not left behind.
    pub fn start(config: &config::Datapath, pools: &[PoolSpec]) -> anyhow::Result<Self> {
        checks::machine()?;
        let interfaces = Interface::all()?;
        checks::pools(pools, &interfaces)?;
        checks::gateways(pools, config, &interfaces)?;
        let wanted = ports::wanted(config, &interfaces)?;
        let directories_made = bpffs::prepare(&config.pin_path)?;
        // Held to the end of this function in any case.
        let lock = Arc::new(PinLock::take(&config.pin_path)?);
        let standing = standing(&config.pin_path)?;
        let node = Node {
            abi_version: ABI_VERSION,
            stage: Node::OPEN,
            public_ip: public_ip(config, &interfaces).map_or([0; 4], |address| address.octets()),
            meters: model::meters(config.max_bindings),
            slow_path_interval: NANOSECONDS / config.slow_path.rate,
            ..match standing.first() {
                Some(earliest) => earliest.node,
                None => Node {
                    all_send_redirects_before: sysctls::all_send_redirects()?,
                    ip_no_pmtu_disc_before: sysctls::ip_no_pmtu_disc()?,
                    directories_made,
                    id: drawn()?,
                    ..Node::default()
                },
            }
        };
        let is_first = standing.is_empty();
        Self::load(config, pools, node, standing, &interfaces, &wanted, Arc::clone(&lock)).map_err(|error| {
            if !is_first {
                return error;
            }
            match remove(&config.pin_path, directories_made, |_| Ok(())) {
                Ok(()) => error,
                Err(second) => error.context(format!("and cleaning up failed: {second:#}")),
            }
        })
    }

    fn load(
        config: &config::Datapath,
        pools: &[PoolSpec],
        mut node: Node,
        mut earlier: Vec<Generation>,
        interfaces: &[Interface],
        wanted: &[(&Interface, Role)],
        lock: Arc<PinLock>,
    ) -> anyhow::Result<Self> {
        let told = generations::told(&earlier)?;
        let fits = earlier.last().map_or(Ok(false), |last| last.fits(config.max_bindings))?;
        let adopted = if fits { earlier.pop() } else { None };
        let is_new = adopted.is_none();
        let generation = if let Some(adopted) = adopted {
            node.stage = adopted.node.stage;
            adopted
        } else {
            generations::check_room(config, &earlier)?;
            Generation::make(&config.pin_path)?
        };
        let undo = |error| {
            if is_new {
                // What failed is what has to be told; the next start throws away what stays.
                let _ = generation.discard();
            }
            error
        };
        let mut ebpf = object::load(config, &generation.dir).map_err(undo)?;
        let mut maps = Maps::take(&mut ebpf, config.max_bindings).map_err(undo)?;
        let map_pins = MapPins::open(&generation.dir).map_err(undo)?;
        let logger = object::logger(&mut ebpf);
        let tracer = Some(XdpTracer::take(&mut ebpf).map_err(undo)?);
        if is_new {
            if !earlier.is_empty() {
                info!(
                    "new maps in {}: the running ones are of another version or size",
                    generation.dir.display()
                );
            }
            maps.set_addresses(&kinds(config, pools, node.public_ip, interfaces)).map_err(undo)?;
            // From here on another start can take these maps over, and unload can undo what follows.
            maps.set_node(node).map_err(undo)?;
        }
        let program =
            Program::choose(ebpf, &config.pin_path, &map_pins, config.replace_program).map_err(undo)?;
        let ports = Ports::add(program, &mut maps, config, told, wanted).map_err(undo)?;
        Ok(Self {
            config: config.clone(),
            pools: pools.to_vec(),
            maps,
            map_pins,
            ports,
            node,
            logger,
            tracer,
            generation: generation.dir,
            is_new,
            earlier,
            is_active: false,
            slow_path: None,
            slow_path_trouble: None,
            arrived: BTreeSet::new(),
            is_to_announce: false,
            routes: None,
            routes_trouble: None,
            fib: None,
            lock,
        })
    }

    /// The program's log, once.
    pub fn take_logger(&mut self) -> Option<ProgramLogger> {
        self.logger.take()
    }

    /// Whether nothing stood before, so that nothing has to stay if the daemon cannot start.
    #[must_use]
    pub fn is_first(&self) -> bool {
        self.is_new && self.earlier.is_empty()
    }

    /// Makes the maps in use the only ones: to be called when no program runs on earlier ones any more.
    fn retire_earlier(&mut self, owners: &Owners<'_>) -> anyhow::Result<()> {
        // No packet is under way any more in an earlier program: its counters stand still.
        self.quiesce()?;
        let mut sums = Sums::default();
        self.earlier.iter().try_for_each(|earlier| earlier.add_to(&mut sums, owners))?;
        self.maps.carry(&sums)?;
        self.node.stage = Node::CURRENT;
        self.maps.set_node(self.node)?;
        if !self.earlier.is_empty() {
            info!("changed over to the new maps, with the counters of {} EIPs", sums.meters.len());
        }
        discard_all(&std::mem::take(&mut self.earlier));
        Ok(())
    }

    /// Undoes the start.
    fn undo(&mut self) -> anyhow::Result<()> {
        self.ports.release();
        if self.is_first() {
            return remove(&self.config.pin_path, self.node.directories_made, |_| Ok(()));
        }
        self.ports.take_back(&mut self.maps)?;
        if self.is_new {
            let generations = Generation::all(&self.config.pin_path)?;
            let own = generations.iter().find(|generation| generation.dir == self.generation);
            own.map_or(Ok(()), Generation::discard)?;
        }
        Ok(())
    }
}

impl Drop for XdpDataplane {
    fn drop(&mut self) {
        if !self.is_active
            && let Err(error) = self.undo()
        {
            error!("the start cannot be undone, `eipnat unload` may help: {error:#}");
        }
    }
}

/// The generations that count, in order: what came before a current one, or was never used, is thrown away.
fn standing(pin_path: &Path) -> anyhow::Result<Vec<Generation>> {
    let mut findings = Findings::default();
    generations::restore_pins(pin_path, &mut findings);
    for advice in findings.started()? {
        warn!("{advice}");
    }
    let mut all = Generation::all(pin_path)?;
    let first = all.iter().rposition(Generation::is_current).unwrap_or(0);
    let later = all.split_off(first);
    let (standing, unused): (Vec<_>, Vec<_>) = later.into_iter().partition(Generation::is_open);
    discard_all(&all);
    discard_all(&unused);
    Ok(standing)
}

/// Something that nobody can guess, and that is not drawn twice.
fn drawn() -> anyhow::Result<[u8; 16]> {
    let mut id = [0; 16];
    rustix::rand::getrandom(&mut id, GetRandomFlags::empty()).context("the kernel draws no random number")?;
    Ok(id)
}

/// Throws away what counts no more. If something strange is in it, that is no reason not to forward.
fn discard_all(generations: &[Generation]) {
    for generation in generations {
        if let Err(error) = generation.discard() {
            warn!("{error:#}");
        }
    }
}

/// Returns when no packet is under way any more that was when it was called.
fn quiesce() -> anyhow::Result<()> {
    // kernel: MEMBARRIER_CMD_GLOBAL is synchronize_rcu(), and XDP programs run under RCU.
    membarrier(MembarrierCommand::Global).context("cannot wait for the packets under way (membarrier)")
}

impl Dataplane for XdpDataplane {
    fn some_halves(&self, place: Place, count: u32) -> anyhow::Result<(Vec<Half>, Option<Place>)> {
        self.maps.halves().some(place, count)
    }

    fn survey(&mut self, see: &mut dyn FnMut(Half)) -> anyhow::Result<()> {
        self.maps.survey(see)
    }

    fn serves(&self) -> anyhow::Result<bool> {
        let mut stood = false;
        for earlier in &self.earlier {
            stood |= !earlier.bindings()?.is_empty();
        }
        let place = Place::default();
        let stands = |place| Ok::<_, anyhow::Error>(!self.some_halves(place, 1)?.0.is_empty());
        Ok(stood || stands(place)? || stands(Place { is_outbound: true, ..place })?)
    }

    fn inbound(&self, public_ip: Ipv4Addr) -> anyhow::Result<Option<Binding>> {
        self.maps.halves().inbound(public_ip)
    }

    fn outbound(&self, tenant: u32, private_ip: Ipv4Addr) -> anyhow::Result<Option<Binding>> {
        self.maps.halves().outbound(tenant, private_ip)
    }

    fn insert(&mut self, halves: &[Half]) -> anyhow::Result<()> {
        self.maps.insert(halves)?;
        let arrived = halves.iter().filter_map(|half| match half {
            Half::Inbound(binding) => Some(binding.public_ip),
            Half::Outbound(_) => None,
        });
        match &self.slow_path {
            Some(slow_path) => slow_path.announce(arrived),
            None => self.arrived.extend(arrived),
        }
        Ok(())
    }

    fn remove(&mut self, half: Half) -> anyhow::Result<()> {
        self.maps.remove(half)
    }

    fn quiesce(&mut self) -> anyhow::Result<()> {
        quiesce()?;
        self.maps.quiesced();
        if let Some(slow_path) = &self.slow_path {
            slow_path.quiesce();
        }
        Ok(())
    }

    fn activate(&mut self, owners: &Owners<'_>) -> anyhow::Result<()> {
        if !self.maps.is_surveyed() {
            self.maps.survey(&mut |_| {})?;
        }
        // From here on an interface may run on the new maps: a failure is for the next start to mend.
        self.is_active = !self.is_first();
        for advice in self.settle()?.started()? {
            warn!("{advice}");
        }
        if self.node.public_ip == [0; 4] {
            warn!(
                "no uplink has a public address: ICMP errors of private routers are dropped; set node.public_ip"
            );
        }
        if self.node.stage != Node::CURRENT {
            self.retire_earlier(owners)?;
        }
        self.is_active = true;
        self.settle_slow_path(&Interface::all()?);
        self.settle_routes();
        Ok(())
    }

    fn mend(&mut self) -> anyhow::Result<Mended> {
        Ok(self.settle()?.into())
    }

    fn meters(&self, meters: &[u32]) -> anyhow::Result<Vec<Meter>> {
        self.maps.meters(meters)
    }

    fn earlier(&self) -> anyhow::Result<HashSet<Binding>> {
        let mut stood = HashSet::new();
        for earlier in &self.earlier {
            stood.extend(earlier.bindings()?);
        }
        Ok(stood)
    }

    fn last_readings(&self, meters: &[u32]) -> anyhow::Result<Vec<Meter>> {
        let mut earlier = BTreeMap::new();
        self.earlier.iter().try_for_each(|generation| generation.add_readings(&mut earlier))?;
        let with_earlier = |(meter, reading): (&u32, Meter)| {
            earlier.get(meter).map_or(reading, |earlier| reading.plus(*earlier))
        };
        Ok(meters.iter().zip(self.maps.meters(meters)?).map(with_earlier).collect())
    }

    fn reset_meter(&mut self, meter: u32) -> anyhow::Result<()> {
        self.maps.reset_meter(meter)
    }

    fn drops(&self, address: Ipv4Addr) -> anyhow::Result<Vec<AddressDrops>> {
        self.maps.drops().of(address)
    }

    fn forget_drops(&mut self, addresses: &HashSet<Ipv4Addr>) -> anyhow::Result<()> {
        self.maps.drops().forget(addresses);
        Ok(())
    }

    fn meters_id(&self) -> [u8; 16] {
        self.node.id
    }

    fn verdicts(&self) -> anyhow::Result<Verdicts> {
        self.maps.verdicts()
    }

    fn slow_path(&self) -> anyhow::Result<slow_path::Report> {
        self.slow_path_report()
    }

    fn ports(&self) -> Vec<Port> {
        self.ports.list()
    }

    fn capacity(&self) -> u32 {
        self.maps.capacity()
    }

    fn take_tracer(&mut self) -> Option<Box<dyn Tracer>> {
        self.tracer.take().map(|tracer| Box::new(tracer) as Box<dyn Tracer>)
    }
}

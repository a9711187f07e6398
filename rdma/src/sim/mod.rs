//! Verbs without hardware: seeded, in one process, in the time of whoever polls.
//!
//! A [`Fabric`] is a network of endpoints, each with one device. Work of one queue pair arrives in order; between queue pairs the
//! order is the seed's. What a card refuses is refused here: keys that are wrong, withdrawn or exceeded, messages longer than the
//! receive for them, sends without a receive (not ready, tried again, then given up), buffers of a pool that is not registered.
//! Time passes only with [`crate::verbs::Verbs::poll`], so a run is its seed and its calls.

mod hardware;
mod world;

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use ringway_reactor::buf::BufPool;
use ringway_reactor::io::Wake;

use crate::endpoint::Endpoint;
use crate::verbs::{Device, DeviceId, QpId, Verbs, WorkError};
use hardware::SimHardware;
use world::{End, World};

/// What goes wrong by itself, and how long things take.
#[derive(Clone, Debug)]
pub struct SimConfig {
    /// How long a message or an answer is on its way, nanoseconds.
    pub delay_ns: Range<u64>,
    /// Of a million works, how many fail with an error that the seed chooses.
    pub failures_per_million: u32,
    /// How often a send is tried again that finds no receive, and after how long, nanoseconds.
    pub rnr_retries: u32,
    pub rnr_delay_ns: u64,
    /// How long a work is tried at a peer that does not answer, nanoseconds.
    pub retry_ns: u64,
}

impl Default for SimConfig {
    fn default() -> Self {
        Self {
            delay_ns: 1_000..20_000,
            failures_per_million: 0,
            rnr_retries: 6,
            rnr_delay_ns: 1_000_000,
            retry_ns: 500_000_000,
        }
    }
}

/// One endpoint of a fabric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndpointId(usize);

/// A network of simulated devices. Clones are the same one.
#[derive(Clone)]
pub struct Fabric(Arc<Mutex<World>>);

impl fmt::Debug for Fabric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fabric")
    }
}

impl Fabric {
    /// A fabric with the defaults of [`SimConfig`].
    #[must_use]
    pub fn new(seed: u64) -> Fabric {
        Fabric::with_config(seed, SimConfig::default())
    }

    /// A fabric where this goes wrong.
    #[must_use]
    pub fn with_config(seed: u64, config: SimConfig) -> Fabric {
        Fabric(Arc::new(Mutex::new(World::new(seed, config))))
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock().expect("nothing panics inside the world")
    }

    /// A new endpoint with a device of its own. Buffers of `pool` are registered with the devices of all. `wake` ends the sleep of
    /// its reactor when something comes.
    pub fn endpoint(
        &self,
        pool: &'static BufPool,
        numa: Option<u16>,
        wake: Option<Arc<dyn Wake>>,
    ) -> (Box<dyn Verbs>, EndpointId) {
        let mut world = self.world();
        let number = world.ends.len();
        let device = Device {
            id: DeviceId(number as u16),
            name: format!("sim{number}"),
            numa,
            queue_entries_max: 8192,
            reads_out_max: 16,
            reads_in_max: 16,
            gone: false,
        };
        world.register(pool);
        world.ends.push(End::new(device, wake));
        (Box::new(Endpoint::new(SimHardware::new(self.clone(), number))), EndpointId(number))
    }

    /// Cuts one connection: the two sides learn of it at different times.
    pub fn cut(&self, endpoint: EndpointId, qp: QpId) {
        self.world().cut(endpoint.0, qp);
    }

    /// The next work that this queue pair sends ends with `error`.
    pub fn fail_next(&self, endpoint: EndpointId, qp: QpId, error: WorkError) {
        self.world().fail_next(endpoint.0, qp, error);
    }

    /// The peer vanishes without a word: what is sent to it is not answered.
    pub fn silence(&self, endpoint: EndpointId) {
        self.world().silence(endpoint.0);
    }

    /// The device of this endpoint is pulled out.
    pub fn remove_device(&self, endpoint: EndpointId) {
        self.world().remove_device(endpoint.0);
    }

    /// It is put back.
    pub fn return_device(&self, endpoint: EndpointId) {
        self.world().return_device(endpoint.0);
    }

    /// Lent buffers that nobody has withdrawn.
    #[must_use]
    pub fn lent(&self) -> usize {
        self.world().lent()
    }

    /// Queue pairs that nobody has destroyed.
    #[must_use]
    pub fn queue_pairs(&self) -> usize {
        self.world().queue_pairs()
    }
}

//! What of this machine decides how fast a target is on it: its cores and what else runs on them, its devices, its kernel.

use std::collections::BTreeMap;

use ringway_reactor::pin::parse_core_list;

use super::source::Source;

/// A machine, as far as it could be seen.
#[derive(Clone, Debug, Default)]
pub(crate) struct Machine {
    /// Cores that are online, with what is known of each.
    pub(crate) cores: BTreeMap<usize, Core>,
    /// Cores that the scheduler keeps other tasks away from (`isolcpus`).
    pub(crate) isolated: Vec<usize>,
    /// Cores' worth of time that the control group may use; `None`: no limit.
    pub(crate) quota: Option<f64>,
    pub(crate) irqs: Vec<Irq>,
    pub(crate) devices: Vec<BlockDevice>,
    pub(crate) ports: Vec<Port>,
    pub(crate) kernel: Kernel,
}

/// A core, by the number that the kernel gives it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Core {
    /// Those that share its execution units, itself among them.
    pub(crate) siblings: Vec<usize>,
    pub(crate) node: Option<usize>,
    /// One of the slower kind of a hybrid processor.
    pub(crate) is_efficient: bool,
    pub(crate) governor: Option<String>,
    /// States in which it may sleep: number, name, microseconds to wake up.
    pub(crate) idle_states: Vec<(usize, String, u64)>,
    /// Shares of its time, from 0 to 1, between the two looks.
    pub(crate) stolen: f64,
    pub(crate) interrupts: f64,
}

/// An interrupt that came between the two looks.
#[derive(Clone, Debug)]
pub(crate) struct Irq {
    pub(crate) number: u32,
    /// As `/proc/interrupts` has it: controller, kind, devices.
    pub(crate) what: String,
    /// How often a second, by core.
    pub(crate) rates: BTreeMap<usize, f64>,
    /// Where it may go, as it is written.
    pub(crate) affinity: Option<String>,
}

/// A block device under the pool.
#[derive(Clone, Debug, Default)]
pub(crate) struct BlockDevice {
    pub(crate) name: String,
    /// How the names of its interrupts begin: nvme for nvme0n1 (nvme0q1), virtio1 for a vda (virtio1-req.0).
    pub(crate) interrupts: String,
    pub(crate) node: Option<usize>,
    /// The one in use, and whether `none` is to be had.
    pub(crate) scheduler: Option<(String, bool)>,
    pub(crate) write_cache: Option<String>,
    pub(crate) is_rotational: bool,
}

/// A port of an RDMA device.
#[derive(Clone, Debug)]
pub(crate) struct Port {
    pub(crate) device: String,
    pub(crate) number: String,
    pub(crate) node: Option<usize>,
    pub(crate) is_active: bool,
    pub(crate) is_ethernet: bool,
    /// Its network interface, and the bytes of a frame there.
    pub(crate) interface: Option<(String, u64)>,
}

/// What the kernel allows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Kernel {
    pub(crate) release: Option<(u32, u32)>,
    /// `kernel.io_uring_disabled`: 0, 1 for those without privilege, 2 for all.
    pub(crate) io_uring_disabled: u32,
    /// Bytes that a process may lock; `None` without a limit, or where it is not known.
    pub(crate) memlock: Option<u64>,
}

/// A process that has it locks as much as it likes (capabilities(7)).
const CAP_IPC_LOCK: u64 = 1 << 14;

const CPU: &str = "sys/devices/system/cpu";

impl Machine {
    /// Reads everything. Takes as long as the source waits between its two looks.
    pub(crate) fn read(source: &Source) -> Machine {
        let subject = source.subject();
        let [interrupts, times] = source.read_twice(["proc/interrupts", "proc/stat"]);
        let mut cores: BTreeMap<_, _> =
            list(source, &format!("{CPU}/online")).into_iter().map(|core| (core, read_core(source, core))).collect();
        for folder in source.names("sys/devices/system/node") {
            let Some(node) = folder.strip_prefix("node").and_then(|number| number.parse().ok()) else { continue };
            for core in list(source, &format!("sys/devices/system/node/{folder}/cpulist")) {
                cores.entry(core).or_default().node = Some(node);
            }
        }
        for core in list(source, "sys/devices/cpu_atom/cpus") {
            cores.entry(core).or_default().is_efficient = true;
        }
        for (core, (stolen, interrupts)) in shares(&times) {
            if let Some(core) = cores.get_mut(&core) {
                (core.stolen, core.interrupts) = (stolen, interrupts);
            }
        }
        let proc = subject.pid.map_or("proc/self".to_owned(), |pid| format!("proc/{pid}"));
        Machine {
            cores,
            isolated: list(source, &format!("{CPU}/isolated")),
            quota: quota(source, &proc),
            irqs: irqs(source, &interrupts),
            devices: subject.devices.iter().map(|name| read_device(source, name)).collect(),
            ports: ports(source),
            kernel: Kernel {
                release: source.read("proc/sys/kernel/osrelease").and_then(|text| release(&text)),
                io_uring_disabled: number(source, "proc/sys/kernel/io_uring_disabled").unwrap_or(0),
                memlock: memlock(source, &proc),
            },
        }
    }

    /// The node of a core.
    pub(crate) fn node_of(&self, core: usize) -> Option<usize> {
        self.cores.get(&core)?.node
    }
}

fn list(source: &Source, path: &str) -> Vec<usize> {
    source.read(path).and_then(|text| parse_core_list(&text).ok()).unwrap_or_default()
}

fn number<T: std::str::FromStr>(source: &Source, path: &str) -> Option<T> {
    source.read(path)?.parse().ok()
}

/// A device's node; -1 is a machine that has but one.
fn node(source: &Source, device: &str) -> Option<usize> {
    number::<i64>(source, &format!("{device}/numa_node")).and_then(|node| usize::try_from(node).ok())
}

fn read_core(source: &Source, core: usize) -> Core {
    let folder = format!("{CPU}/cpu{core}");
    let states = source.names(&format!("{folder}/cpuidle"));
    let idle_states = states.iter().filter_map(|state| {
        let at = format!("{folder}/cpuidle/{state}");
        let is_off = number::<u32>(source, &format!("{at}/disable")).is_some_and(|disabled| disabled != 0);
        let name = source.read(&format!("{at}/name"))?;
        let latency = number(source, &format!("{at}/latency"))?;
        (!is_off).then_some((state.strip_prefix("state")?.parse().ok()?, name, latency))
    });
    Core {
        idle_states: idle_states.collect(),
        siblings: list(source, &format!("{folder}/topology/thread_siblings_list")),
        governor: source.read(&format!("{folder}/cpufreq/scaling_governor")),
        ..Core::default()
    }
}

/// Of each core the shares of its time that were stolen and that went into interrupts. `/proc/stat` (proc(5)): user, nice, system, idle,
/// iowait, irq, softirq, steal.
fn shares((first, later): &(String, String)) -> BTreeMap<usize, (f64, f64)> {
    let times = |text: &str| -> BTreeMap<usize, Vec<u64>> {
        let lines = text.lines().filter_map(|line| {
            let mut words = line.strip_prefix("cpu")?.split_ascii_whitespace();
            let core = words.next()?.parse().ok()?;
            Some((core, words.take(8).filter_map(|word| word.parse().ok()).collect()))
        });
        lines.collect()
    };
    let (first, later) = (times(first), times(later));
    let shares = later.iter().filter_map(|(core, later)| {
        let spent: Vec<u64> =
            later.iter().zip(first.get(core)?).map(|(later, first)| later.saturating_sub(*first)).collect();
        let [_, _, _, _, _, irq, softirq, steal] = spent[..] else { return None };
        let all = spent.iter().sum::<u64>().max(1) as f64;
        Some((*core, (steal as f64 / all, (irq + softirq) as f64 / all)))
    });
    shares.collect()
}

/// The interrupts that came between the two looks.
fn irqs(source: &Source, (first, later): &(String, String)) -> Vec<Irq> {
    let counts = |text: &str| -> BTreeMap<u32, (BTreeMap<usize, u64>, String)> {
        let mut lines = text.lines();
        let head = lines.next().unwrap_or_default().split_ascii_whitespace();
        let columns: Vec<usize> = head.filter_map(|word| word.strip_prefix("CPU")?.parse().ok()).collect();
        let rows = lines.filter_map(|line| {
            let (number, rest) = line.split_once(':')?;
            let words: Vec<&str> = rest.split_ascii_whitespace().collect();
            let counts = columns.iter().zip(&words).filter_map(|(core, word)| Some((*core, word.parse().ok()?)));
            let what = words.get(columns.len()..).unwrap_or_default().join(" ");
            Some((number.trim().parse().ok()?, (counts.collect(), what)))
        });
        rows.collect()
    };
    let (first, later) = (counts(first), counts(later));
    let came = later.into_iter().filter_map(|(number, (later, what))| {
        let (first, _) = first.get(&number)?;
        let rates: BTreeMap<usize, f64> = later
            .into_iter()
            .map(|(core, later)| (core, later.saturating_sub(first.get(&core).copied().unwrap_or(later))))
            .filter(|(_, count)| *count > 0)
            .map(|(core, count)| (core, count as f64 / source.seconds().max(0.001)))
            .collect();
        let affinity = source.read(&format!("proc/irq/{number}/smp_affinity_list"));
        (!rates.is_empty()).then_some(Irq { number, what, rates, affinity })
    });
    came.collect()
}

fn read_device(source: &Source, name: &str) -> BlockDevice {
    let folder = format!("sys/block/{name}");
    // "mq-deadline [none]": the one in use stands in brackets.
    let scheduler = source.read(&format!("{folder}/queue/scheduler")).and_then(|text| {
        let used = text.split_ascii_whitespace().find_map(|word| word.strip_prefix('[')?.strip_suffix(']'))?;
        Some((used.to_owned(), text.split_ascii_whitespace().any(|word| word == "none" || word == "[none]")))
    });
    let virtio = source.names("sys/bus/virtio/devices");
    let virtio = virtio
        .into_iter()
        .find(|device| source.names(&format!("sys/bus/virtio/devices/{device}/block")).iter().any(|disk| disk == name));
    BlockDevice {
        name: name.to_owned(),
        interrupts: virtio.unwrap_or_else(|| letters(name).to_owned()),
        // Of an NVMe namespace the controller has it, one further up.
        node: node(source, &format!("{folder}/device")).or_else(|| node(source, &format!("{folder}/device/device"))),
        scheduler,
        write_cache: source.read(&format!("{folder}/queue/write_cache")),
        is_rotational: number(source, &format!("{folder}/queue/rotational")) == Some(1),
    }
}

/// A device's name without its number.
pub(super) fn letters(name: &str) -> &str {
    name.split(|c: char| c.is_ascii_digit()).next().unwrap_or(name)
}

fn ports(source: &Source) -> Vec<Port> {
    let mut ports = Vec::new();
    for device in source.names("sys/class/infiniband") {
        let folder = format!("sys/class/infiniband/{device}");
        let interface = source.names(&format!("{folder}/device/net")).into_iter().next();
        for number in source.names(&format!("{folder}/ports")) {
            let read = |name: &str| source.read(&format!("{folder}/ports/{number}/{name}")).unwrap_or_default();
            ports.push(Port {
                node: node(source, &format!("{folder}/device")),
                is_active: read("state").ends_with("ACTIVE"),
                is_ethernet: read("link_layer") == "Ethernet",
                interface: interface
                    .clone()
                    .and_then(|name| Some((name.clone(), self::number(source, &format!("sys/class/net/{name}/mtu"))?))),
                device: device.clone(),
                number,
            });
        }
    }
    ports
}

/// The tightest `cpu.max` (control groups v2) on the way up from the process's own group.
fn quota(source: &Source, proc: &str) -> Option<f64> {
    let groups = source.read(&format!("{proc}/cgroup"))?;
    let mut group = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let mut tightest: Option<f64> = None;
    loop {
        let at = if group.is_empty() { String::new() } else { format!("/{group}") };
        let limit = source.read(&format!("sys/fs/cgroup{at}/cpu.max")).and_then(|text| {
            let (quota, period) = text.split_once(' ')?;
            Some(quota.parse::<f64>().ok()? / period.parse::<f64>().ok()?)
        });
        tightest = tightest.into_iter().chain(limit).reduce(f64::min);
        if group.is_empty() {
            return tightest;
        }
        group = group.rsplit_once('/').map_or("", |(above, _)| above);
    }
}

fn release(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn memlock(source: &Source, proc: &str) -> Option<u64> {
    let status = source.read(&format!("{proc}/status")).unwrap_or_default();
    let effective = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("CapEff:")?.trim(), 16).ok());
    if effective.is_some_and(|capabilities| capabilities & CAP_IPC_LOCK != 0) {
        return None;
    }
    let limits = source.read(&format!("{proc}/limits"))?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

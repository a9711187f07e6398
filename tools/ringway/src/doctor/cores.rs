//! Findings about the cores that reactors run on, and about what else runs there.

use ringway_reactor::pin::CoreList;

use super::finding::{Finding, Rank, Remedy};
use super::machine::{Machine, letters};
use super::source::Subject;

/// From this share of a core's time on, others' work on it is worth a word.
const SHARE: f64 = 0.01;
/// Interrupts a second of devices that are not ours, from which on they are.
const IRQS_A_SECOND: f64 = 100.0;
/// Microseconds to wake up that no reactor should pay: about a read of a fast device.
const WAKE_US: u64 = 20;

fn names(cores: &[usize]) -> String {
    CoreList(cores.to_vec()).to_string()
}

/// Everything about cores.
pub(super) fn findings(machine: &Machine, subject: &Subject) -> Vec<Finding> {
    let all: [fn(&Machine, &Subject) -> Option<Finding>; 9] =
        [quota, shared_units, other_node, efficient, stolen, foreign_interrupts, governor, sleeps, not_isolated];
    all.iter().filter_map(|find| find(machine, subject)).collect()
}

/// The cores of `subject` of which `is` holds.
fn those(machine: &Machine, subject: &Subject, is: impl Fn(&super::machine::Core) -> bool) -> Vec<usize> {
    subject.cores.iter().copied().filter(|core| machine.cores.get(core).is_some_and(&is)).collect()
}

fn quota(machine: &Machine, subject: &Subject) -> Option<Finding> {
    let quota = machine.quota?;
    let reactors = subject.cores.len();
    (quota < reactors as f64).then(|| Finding {
        rank: Rank::High,
        topic: "cgroup-quota",
        what: format!("the control group may use {quota} cores' time, and {reactors} reactors poll"),
        evidence: vec![format!("cpu.max of the control group: {quota} of each period")],
        cost: "reactors stand still for the rest of each period, up to 100 ms, whatever waits for them",
        remedy: Remedy::command(
            "systemctl set-property --runtime ringway.service CPUQuota=",
            format!("systemctl set-property --runtime ringway.service CPUQuota={}%", (quota * 100.0).round()),
        ),
    })
}

/// Two reactors on the two halves of one core.
fn shared_units(machine: &Machine, subject: &Subject) -> Option<Finding> {
    let pairs: Vec<String> = subject
        .cores
        .iter()
        .flat_map(|&core| {
            let siblings = machine.cores.get(&core).map_or(&[][..], |core| &core.siblings);
            let others = siblings.iter().filter(move |&&other| other > core && subject.cores.contains(&other));
            others.map(move |other| format!("thread_siblings_list of core {core}: it shares its units with {other}"))
        })
        .collect();
    if pairs.is_empty() {
        return None;
    }
    let apart = apart(machine, subject);
    let restart = |cores: &[usize]| format!("ringway serve --cores {}", names(cores));
    let remedy = if apart.len() == subject.cores.len() {
        Remedy::command(restart(&apart), restart(&subject.cores))
    } else {
        Remedy::elsewhere(format!(
            "the machine has not so many whole cores; `--cores {}` gives each of fewer reactors its own",
            names(&apart)
        ))
    };
    Some(Finding {
        rank: Rank::High,
        topic: "smt-siblings",
        what: format!("{} pairs of reactors share the execution units of a core", pairs.len()),
        evidence: pairs,
        cost: "each of the two has between half and two thirds of a core's speed",
        remedy,
    })
}

/// As many cores as there are reactors, of which no two are siblings: those in use first, then others of the same nodes, then any.
fn apart(machine: &Machine, subject: &Subject) -> Vec<usize> {
    let nodes: Vec<_> = subject.cores.iter().map(|&core| machine.node_of(core)).collect();
    let mut candidates: Vec<usize> = machine.cores.keys().copied().collect();
    candidates.sort_by_key(|core| (!subject.cores.contains(core), !nodes.contains(&machine.node_of(*core)), *core));
    let mut chosen: Vec<usize> = Vec::new();
    for core in candidates {
        let is_alone = machine.cores[&core].siblings.iter().all(|other| !chosen.contains(other));
        if is_alone && chosen.len() < subject.cores.len() {
            chosen.push(core);
        }
    }
    chosen.sort_unstable();
    chosen
}

/// Reactors far from the device that they read and write, or from the card that brings the requests.
fn other_node(machine: &Machine, subject: &Subject) -> Option<Finding> {
    let devices = machine.devices.iter().map(|device| (device.node, &device.name));
    let cards = machine.ports.iter().filter(|port| port.is_active).map(|port| (port.node, &port.device));
    let mut evidence = Vec::new();
    let mut near = None;
    for (node, name) in devices.chain(cards) {
        let Some(node) = node else { continue };
        let far: Vec<usize> =
            subject.cores.iter().copied().filter(|&core| machine.node_of(core).is_some_and(|of| of != node)).collect();
        if !far.is_empty() {
            evidence.push(format!("{name} is on node {node}, reactors on cores {} are not", names(&far)));
            near = near.or(Some(node));
        }
    }
    let near = near?;
    let mut close: Vec<usize> =
        machine.cores.iter().filter(|(_, core)| core.node == Some(near)).map(|(&core, _)| core).collect();
    close.truncate(subject.cores.len());
    Some(Finding {
        rank: Rank::Medium,
        topic: "numa",
        what: "reactors and the devices they work with are on different memory nodes".to_owned(),
        evidence,
        cost: "each transfer crosses between the sockets: some 100 ns more a request, and the link's bandwidth",
        remedy: Remedy::command(
            format!("ringway serve --cores {}", names(&close)),
            format!("ringway serve --cores {}", names(&subject.cores)),
        ),
    })
}

fn efficient(machine: &Machine, subject: &Subject) -> Option<Finding> {
    let slow = those(machine, subject, |core| core.is_efficient);
    if slow.is_empty() {
        return None;
    }
    let mut fast: Vec<usize> =
        machine.cores.iter().filter(|(_, core)| !core.is_efficient).map(|(&core, _)| core).collect();
    fast.truncate(subject.cores.len());
    Some(Finding {
        rank: Rank::Medium,
        topic: "hybrid-cores",
        what: format!("reactors run on slow cores of a hybrid processor: {}", names(&slow)),
        evidence: vec!["/sys/devices/cpu_atom/cpus names them".to_owned()],
        cost: "a volume has a shard on every reactor: all of it is as fast as the slowest",
        remedy: Remedy::command(
            format!("ringway serve --cores {}", names(&fast)),
            format!("ringway serve --cores {}", names(&subject.cores)),
        ),
    })
}

fn stolen(machine: &Machine, subject: &Subject) -> Option<Finding> {
    let robbed = those(machine, subject, |core| core.stolen >= SHARE);
    let most = robbed.iter().map(|core| machine.cores[core].stolen).fold(0.0, f64::max);
    (!robbed.is_empty()).then(|| Finding {
        rank: if most >= 5.0 * SHARE { Rank::High } else { Rank::Medium },
        topic: "steal",
        what: format!("the hypervisor runs others on cores {}", names(&robbed)),
        evidence: shares(&robbed, |core| machine.cores[&core].stolen, "steal of /proc/stat"),
        cost: "a reactor stands still for milliseconds at a time, and everything on it waits",
        remedy: Remedy::elsewhere("the host has to give this machine cores of its own"),
    })
}

fn shares(cores: &[usize], share: impl Fn(usize) -> f64, of: &str) -> Vec<String> {
    cores.iter().map(|&core| format!("core {core}: {:.1} % of its time, {of}", share(core) * 100.0)).collect()
}

/// Interrupts of devices that the target does not work with.
fn foreign_interrupts(machine: &Machine, subject: &Subject) -> Option<Finding> {
    let others: Vec<usize> = machine.cores.keys().copied().filter(|core| !subject.cores.contains(core)).collect();
    let is_ours = |what: &str| {
        let devices = machine.devices.iter().map(|device| device.interrupts.as_str());
        // mlx5_comp3 for mlx5_0.
        let mut names = devices.chain(machine.ports.iter().map(|port| letters(&port.device)));
        names.any(|name| what.contains(name))
    };
    let mut evidence = Vec::new();
    let mut writes = Vec::new();
    let mut fixed = false;
    for irq in machine.irqs.iter().filter(|irq| !is_ours(&irq.what)) {
        let busy = irq.rates.iter().filter(|(core, rate)| subject.cores.contains(core) && **rate >= IRQS_A_SECOND);
        let here: Vec<String> = busy.map(|(core, rate)| format!("{rate:.0} a second on core {core}")).collect();
        if here.is_empty() {
            continue;
        }
        evidence.push(format!("interrupt {} ({}): {}", irq.number, irq.what, here.join(", ")));
        match &irq.affinity {
            Some(old) => {
                let path = format!("/proc/irq/{}/smp_affinity_list", irq.number);
                writes.push((path, names(&others), old.clone()));
            }
            None => fixed = true,
        }
    }
    let busy = those(machine, subject, |core| core.interrupts >= 5.0 * SHARE);
    if evidence.is_empty() {
        return None;
    }
    evidence.extend(shares(&busy, |core| machine.cores[&core].interrupts, "irq and softirq of /proc/stat"));
    Some(Finding {
        rank: if busy.is_empty() { Rank::Low } else { Rank::Medium },
        topic: "interrupts",
        what: "interrupts of other devices come to cores of reactors".to_owned(),
        evidence,
        cost: "each takes a reactor 1 to 20 us, with what the network stack does behind it",
        remedy: if others.is_empty() {
            Remedy::elsewhere("every core has a reactor: leave one to the rest of the machine with `--cores`")
        } else if fixed && writes.is_empty() {
            Remedy::elsewhere("where these go cannot be seen from here, or not be changed")
        } else {
            Remedy::writes(writes)
        },
    })
}

fn governor(machine: &Machine, subject: &Subject) -> Option<Finding> {
    let slow = those(machine, subject, |core| core.governor.as_deref().is_some_and(|name| name != "performance"));
    if slow.is_empty() {
        return None;
    }
    let path = |core: usize| format!("/sys/devices/system/cpu/cpu{core}/cpufreq/scaling_governor");
    let now = |core: usize| machine.cores[&core].governor.clone().unwrap_or_default();
    Some(Finding {
        rank: Rank::Medium,
        topic: "frequency",
        what: format!("cores {} change their frequency with the load", names(&slow)),
        evidence: slow.iter().map(|&core| format!("{}: {}", path(core), now(core))).collect(),
        cost: "after a rest a reactor runs slowly for some milliseconds, and its requests with it",
        remedy: Remedy::writes(slow.iter().map(|&core| (path(core), "performance".to_owned(), now(core)))),
    })
}

fn sleeps(machine: &Machine, subject: &Subject) -> Option<Finding> {
    let mut evidence = Vec::new();
    let mut writes = Vec::new();
    for core in &subject.cores {
        let states = machine.cores.get(core).map_or(&[][..], |core| &core.idle_states);
        for (state, name, latency) in states.iter().filter(|(_, _, latency)| *latency > WAKE_US) {
            let folder = format!("/sys/devices/system/cpu/cpu{core}/cpuidle/state{state}");
            evidence.push(format!("{folder}: {name}, {latency} us to wake up"));
            writes.push((format!("{folder}/disable"), "1".to_owned(), "0".to_owned()));
        }
    }
    (!evidence.is_empty()).then(|| Finding {
        rank: Rank::Low,
        topic: "idle-states",
        what: "cores of reactors may sleep so deeply that a request waits for them".to_owned(),
        evidence,
        cost: "a request that finds its reactor asleep waits so much longer; one that polls never sleeps",
        remedy: Remedy::writes(writes),
    })
}

fn not_isolated(machine: &Machine, subject: &Subject) -> Option<Finding> {
    let shared: Vec<usize> = subject.cores.iter().copied().filter(|core| !machine.isolated.contains(core)).collect();
    let rest: Vec<usize> = machine.cores.keys().copied().filter(|core| !subject.cores.contains(core)).collect();
    if shared.is_empty() || rest.is_empty() || !subject.is_running {
        return None;
    }
    let set = |cores: &str| {
        ["system.slice", "user.slice"]
            .map(|slice| format!("systemctl set-property --runtime {slice} AllowedCPUs={cores}"))
    };
    Some(Finding {
        rank: Rank::Low,
        topic: "isolation",
        what: format!("other programs may run on cores {}", names(&shared)),
        evidence: vec![format!("/sys/devices/system/cpu/isolated: {}", names(&machine.isolated))],
        cost: "a program that the scheduler puts there takes the reactor's core for milliseconds",
        remedy: Remedy::Commands { change: set(&names(&rest)).into(), undo: set("").into() },
    })
}

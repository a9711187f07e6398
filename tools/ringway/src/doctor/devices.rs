//! Findings about devices, memory and the kernel.

use super::finding::{Finding, Rank, Remedy};
use super::machine::Machine;
use super::source::Subject;
use crate::size::Size;

/// Below this kernel completions interrupt the thread that they are for (no `IORING_SETUP_DEFER_TASKRUN`).
const KERNEL: (u32, u32) = (6, 1);
/// Bytes of a frame that carries an RDMA packet of 4 KiB with its headers.
const FRAME: u64 = 4200;

/// Everything about devices, memory and the kernel.
pub(super) fn findings(machine: &Machine, subject: &Subject) -> Vec<Finding> {
    let mut findings: Vec<Finding> =
        [memlock(machine, subject), io_uring(machine), kernel(machine)].into_iter().flatten().collect();
    findings.extend(scheduler(machine));
    findings.extend(rotational(machine));
    findings.extend(write_cache(machine));
    findings.extend(rdma_ports(machine));
    findings.extend(rdma_frames(machine));
    findings
}

fn memlock(machine: &Machine, subject: &Subject) -> Option<Finding> {
    let limit = machine.kernel.memlock?;
    let needed = subject.buffer_bytes.saturating_mul(subject.cores.len() as u64);
    let set = |bytes: u64| {
        format!(
            "ulimit -l {}   # where the target is started, or LimitMEMLOCK={bytes} in its unit",
            bytes.div_ceil(1024)
        )
    };
    (limit < needed).then(|| Finding {
        rank: Rank::Medium,
        topic: "memlock",
        what: format!("{} may be locked, and {} reactors register {}", Size(limit), subject.cores.len(), Size(needed)),
        evidence: vec![format!("{}: Max locked memory {limit}", limits_of(subject))],
        cost: "buffers are not registered: the kernel pins each one's pages again for each operation; no RDMA",
        remedy: Remedy::command(set(needed), set(limit)),
    })
}

fn limits_of(subject: &Subject) -> String {
    subject.pid.map_or("/proc/self/limits".to_owned(), |pid| format!("/proc/{pid}/limits"))
}

fn io_uring(machine: &Machine) -> Option<Finding> {
    let level = machine.kernel.io_uring_disabled;
    (level > 0).then(|| Finding {
        rank: Rank::High,
        topic: "io-uring-disabled",
        what: format!(
            "this machine forbids io_uring{}",
            if level == 1 { " to programs without privilege" } else { "" }
        ),
        evidence: vec![format!("/proc/sys/kernel/io_uring_disabled: {level}")],
        cost: "no target starts",
        remedy: Remedy::command(
            "sysctl kernel.io_uring_disabled=0",
            format!("sysctl kernel.io_uring_disabled={level}"),
        ),
    })
}

fn kernel(machine: &Machine) -> Option<Finding> {
    let release @ (major, minor) = machine.kernel.release?;
    (release < KERNEL).then(|| Finding {
        rank: Rank::Medium,
        topic: "kernel",
        what: format!("Linux {major}.{minor} interrupts a reactor for completions"),
        evidence: vec![format!("/proc/sys/kernel/osrelease: {major}.{minor}")],
        cost: "each completion interrupts what the reactor does; from 6.1 on it takes them when it looks",
        remedy: Remedy::elsewhere("a kernel from 6.1 on"),
    })
}

fn scheduler(machine: &Machine) -> impl Iterator<Item = Finding> {
    machine.devices.iter().filter_map(|device| {
        let (used, has_none) = device.scheduler.clone()?;
        let path = format!("/sys/block/{}/queue/scheduler", device.name);
        (used != "none" && has_none && !device.is_rotational).then(|| Finding {
            rank: Rank::Medium,
            topic: "scheduler",
            what: format!("requests to {} go through the scheduler {used}", device.name),
            evidence: vec![format!("{path}: {used}")],
            cost: "a lock that all reactors share, and a microsecond or more a request",
            remedy: Remedy::writes([(path, "none".to_owned(), used)]),
        })
    })
}

fn rotational(machine: &Machine) -> impl Iterator<Item = Finding> {
    machine.devices.iter().filter(|device| device.is_rotational).map(|device| Finding {
        rank: Rank::High,
        topic: "rotational",
        what: format!("{} turns, or says so", device.name),
        evidence: vec![format!("/sys/block/{}/queue/rotational: 1", device.name)],
        cost: "some hundred requests a second",
        remedy: Remedy::elsewhere(
            "a pool on flash; virtual disks say so wrongly, which does no harm but to the scheduler's choice",
        ),
    })
}

fn write_cache(machine: &Machine) -> impl Iterator<Item = Finding> {
    let volatile = |cache: &str| cache == "write back";
    let cached = machine.devices.iter().filter(move |device| device.write_cache.as_deref().is_some_and(volatile));
    cached.map(|device| {
        let path = format!("/sys/block/{}/queue/write_cache", device.name);
        Finding {
            rank: Rank::Low,
            topic: "write-cache",
            what: format!("{} has a cache that a power failure empties", device.name),
            evidence: vec![format!("{path}: write back")],
            cost: "every flush of a client, and every commit of a shard, waits for the device to empty it",
            remedy: Remedy::elsewhere(format!(
                "a device whose cache is protected. If this one's is and it does not say so: echo write through > {path} \
                 (undo: echo write back > {path}); where it is not, that loses data"
            )),
        }
    })
}

fn rdma_ports(machine: &Machine) -> impl Iterator<Item = Finding> {
    machine.ports.iter().filter(|port| !port.is_active).map(|port| Finding {
        rank: Rank::Medium,
        topic: "rdma-port",
        what: format!("port {} of {} is not active", port.number, port.device),
        evidence: vec![format!("/sys/class/infiniband/{}/ports/{}/state", port.device, port.number)],
        cost: "no host reaches the target through it",
        remedy: match &port.interface {
            Some((interface, _)) => {
                Remedy::command(format!("ip link set {interface} up"), format!("ip link set {interface} down"))
            }
            None => Remedy::elsewhere("a cable, or a subnet that a manager runs"),
        },
    })
}

fn rdma_frames(machine: &Machine) -> impl Iterator<Item = Finding> {
    let ports = machine.ports.iter().filter(|port| port.is_active && port.is_ethernet);
    ports.filter_map(|port| {
        let (interface, mtu) = port.interface.as_ref()?;
        (*mtu < FRAME).then(|| Finding {
            rank: Rank::Medium,
            topic: "rdma-mtu",
            what: format!("frames of {interface} are too short for RDMA packets of 4 KiB"),
            evidence: vec![format!("/sys/class/net/{interface}/mtu: {mtu}")],
            cost: "a block of 4 KiB goes in four packets or more instead of one",
            remedy: Remedy::command(
                format!("ip link set {interface} mtu {FRAME}"),
                format!("ip link set {interface} mtu {mtu}"),
            ),
        })
    })
}

//! Recorded machines and what is to be found on them: each is one that is as it should be, with one thing changed.

use super::finding::Rank;
use super::*;

const CPU: &str = "sys/devices/system/cpu";

/// A machine of `cores` cores that do nothing, on which reactors run on `reactors`.
fn machine(cores: usize, reactors: &[usize]) -> Record {
    let subject = Subject {
        cores: reactors.to_vec(),
        is_running: false,
        pid: None,
        devices: vec!["nvme0n1".to_owned()],
        buffer_bytes: 64 << 20,
    };
    let times: String = (0..cores).map(|core| format!("cpu{core} 10 0 10 1000 0 0 0 0 0 0\n")).collect();
    let later: String = (0..cores).map(|core| format!("cpu{core} 10 0 10 1100 0 0 0 0 0 0\n")).collect();
    let record = Record::new(subject, 1.0)
        .with(&format!("{CPU}/online"), format!("0-{}", cores - 1))
        .with(&format!("{CPU}/isolated"), "")
        .with("proc/stat", times)
        .with("later/proc/stat", later)
        .with("proc/sys/kernel/osrelease", "6.12.3-amd64")
        .with("proc/sys/kernel/io_uring_disabled", "0")
        .with("proc/self/limits", "Limit  Soft  Hard  Units\nMax locked memory         unlimited  unlimited  bytes")
        .with("sys/block/nvme0n1/queue/scheduler", "[none] mq-deadline")
        .with("sys/block/nvme0n1/queue/write_cache", "write through")
        .with("sys/block/nvme0n1/queue/rotational", "0")
        .with("sys/block/nvme0n1/device/numa_node", "-1");
    (0..cores).fold(record, |record, core| {
        record
            .with(&format!("{CPU}/cpu{core}/topology/thread_siblings_list"), core.to_string())
            .with(&format!("{CPU}/cpu{core}/cpufreq/scaling_governor"), "performance")
    })
}

/// Cores n and n + half are two threads of one.
fn threaded(cores: usize, reactors: &[usize]) -> Record {
    let half = cores / 2;
    (0..cores).fold(machine(cores, reactors), |record, core| {
        let first = core % half;
        record.with(&format!("{CPU}/cpu{core}/topology/thread_siblings_list"), format!("{first},{}", first + half))
    })
}

/// The first half of the cores on node 0, the others on node 1, where the disk is.
fn two_sockets(cores: usize, reactors: &[usize]) -> Record {
    let half = cores / 2;
    machine(cores, reactors)
        .with("sys/devices/system/node/node0/cpulist", format!("0-{}", half - 1))
        .with("sys/devices/system/node/node1/cpulist", format!("{half}-{}", cores - 1))
        .with("sys/block/nvme0n1/device/numa_node", "1")
}

fn examined(record: Record) -> Report {
    examine(&Source::recorded(record))
}

fn topics(report: &Report) -> Vec<&'static str> {
    report.findings.iter().map(|finding| finding.topic).collect()
}

/// The only finding, with what changes it and what undoes that.
fn only(report: &Report) -> (&Finding, &[String], &[String]) {
    let [finding] = report.findings.as_slice() else { panic!("{:?}", report.findings) };
    match &finding.remedy {
        Remedy::Commands { change, undo } => (finding, change, undo),
        Remedy::Elsewhere { .. } => (finding, &[], &[]),
    }
}

#[test]
fn a_machine_as_it_should_be_has_no_findings() {
    let report = examined(machine(8, &[2, 3]));
    assert!(report.findings.is_empty() && report.not_seen.is_empty(), "{report:?}");
    assert!(show(&report).contains("cores 2-3; its pool is on nvme0n1\nnothing was found"));
}

#[test]
fn two_reactors_on_one_core_are_moved_apart_and_can_be_moved_back() {
    let report = examined(threaded(8, &[1, 5]));
    let (finding, change, undo) = only(&report);
    assert_eq!((finding.topic, finding.rank), ("smt-siblings", Rank::High));
    assert_eq!(finding.evidence, ["thread_siblings_list of core 1: it shares its units with 5"]);
    assert_eq!(change, ["ringway serve --cores 0-1"]);
    assert_eq!(undo, ["ringway serve --cores 1,5"]);
}

#[test]
fn more_reactors_than_whole_cores_are_said_to_be_too_many() {
    let report = examined(threaded(4, &[0, 1, 2, 3]));
    let (finding, change, _) = only(&report);
    assert!(change.is_empty());
    let Remedy::Elsewhere { advice } = &finding.remedy else { panic!("{finding:?}") };
    assert!(advice.contains("--cores 0-1"), "{advice}");
}

#[test]
fn reactors_on_the_other_socket_than_the_disk_are_sent_there() {
    let report = examined(two_sockets(8, &[0, 1]));
    let (finding, change, undo) = only(&report);
    assert_eq!(
        (finding.topic, finding.evidence[0].as_str()),
        ("numa", "nvme0n1 is on node 1, reactors on cores 0-1 are not")
    );
    assert_eq!(
        (change, undo),
        (&["ringway serve --cores 4-5".to_owned()][..], &["ringway serve --cores 0-1".to_owned()][..])
    );
    assert!(examined(two_sockets(8, &[4, 5])).findings.is_empty());
}

#[test]
fn slow_cores_of_a_hybrid_processor_are_named() {
    let report = examined(machine(8, &[3, 4]).with("sys/devices/cpu_atom/cpus", "4-7"));
    let (finding, change, _) = only(&report);
    assert_eq!((finding.topic, change), ("hybrid-cores", &["ringway serve --cores 0-1".to_owned()][..]));
    assert!(finding.what.ends_with(": 4"), "{}", finding.what);
}

#[test]
fn a_container_with_less_time_than_reactors_is_named_with_the_tightest_of_its_groups() {
    let record = machine(8, &[0, 1])
        .with("proc/self/cgroup", "0::/pod/target")
        .with("sys/fs/cgroup/pod/target/cpu.max", "max 100000")
        .with("sys/fs/cgroup/pod/cpu.max", "150000 100000")
        .with("sys/fs/cgroup/cpu.max", "400000 100000");
    let report = examined(record);
    let (finding, _, undo) = only(&report);
    assert_eq!((finding.topic, finding.rank), ("cgroup-quota", Rank::High));
    assert!(finding.what.contains("1.5 cores' time, and 2 reactors"), "{}", finding.what);
    assert_eq!(undo, ["systemctl set-property --runtime ringway.service CPUQuota=150%"]);
}

#[test]
fn interrupts_of_other_devices_are_sent_to_cores_without_reactors_and_our_own_stay() {
    let head = "           CPU0       CPU1       CPU2       CPU3";
    let row = |number: u32, counts: [u32; 4], what: &str| {
        format!("\n {number}: {} {} {} {}  PCI-MSIX-0000 {what}", counts[0], counts[1], counts[2], counts[3])
    };
    let record = machine(4, &[2, 3])
        .with(
            "proc/interrupts",
            head.to_owned() + &row(30, [0, 0, 5, 0], "eth0-rx") + &row(31, [0, 0, 7, 0], "nvme0q1"),
        )
        .with(
            "later/proc/interrupts",
            head.to_owned() + &row(30, [0, 9, 905, 0], "eth0-rx") + &row(31, [0, 0, 9007, 0], "nvme0q1"),
        )
        .with("proc/irq/30/smp_affinity_list", "0-3")
        .with("proc/irq/31/smp_affinity_list", "2");
    let virtual_disk = record.clone().with("sys/bus/virtio/devices/virtio3/block/nvme0n1/size", "1");
    assert_eq!(
        examined(virtual_disk).findings[0].evidence.len(),
        2,
        "the name of a virtual disk's interrupts is another"
    );
    let report = examined(record);
    let (finding, change, undo) = only(&report);
    assert_eq!((finding.topic, finding.rank), ("interrupts", Rank::Low));
    assert_eq!(finding.evidence, ["interrupt 30 (PCI-MSIX-0000 eth0-rx): 900 a second on core 2"]);
    assert_eq!(change, ["echo 0-1 > /proc/irq/30/smp_affinity_list"]);
    assert_eq!(undo, ["echo 0-3 > /proc/irq/30/smp_affinity_list"]);
}

#[test]
fn stolen_time_comes_before_what_matters_less() {
    let record = machine(2, &[1])
        .with("later/proc/stat", "cpu0 10 0 10 1100 0 0 0 0 0 0\ncpu1 10 0 10 1090 0 0 0 10 0 0")
        .with(&format!("{CPU}/cpu1/cpufreq/scaling_governor"), "schedutil")
        .with(&format!("{CPU}/cpu1/cpuidle/state1/name"), "C1")
        .with(&format!("{CPU}/cpu1/cpuidle/state1/latency"), "2")
        .with(&format!("{CPU}/cpu1/cpuidle/state3/name"), "C6")
        .with(&format!("{CPU}/cpu1/cpuidle/state3/latency"), "133")
        .with(&format!("{CPU}/cpu1/cpuidle/state3/disable"), "0");
    let report = examined(record);
    assert_eq!(topics(&report), ["steal", "frequency", "idle-states"]);
    let [_, governor, idle] = report.findings.as_slice() else { panic!() };
    let path = "/sys/devices/system/cpu/cpu1/cpufreq/scaling_governor";
    assert_eq!(
        governor.remedy,
        Remedy::command(format!("echo performance > {path}"), format!("echo schedutil > {path}"))
    );
    assert_eq!(idle.evidence, ["/sys/devices/system/cpu/cpu1/cpuidle/state3: C6, 133 us to wake up"]);
    let text = show(&report);
    assert!(
        text.contains("1. [high] the hypervisor runs others on cores 1\n     seen:   core 1: 10.0 % of its time"),
        "{text}"
    );
    assert!(text.contains("     undo:   echo 0 > /sys/devices/system/cpu/cpu1/cpuidle/state3/disable\n"), "{text}");
}

#[test]
fn memory_kernel_and_devices_each_have_their_finding() {
    let record = machine(2, &[0, 1])
        .with("proc/sys/kernel/osrelease", "5.15.0-91-generic")
        .with("proc/sys/kernel/io_uring_disabled", "2")
        .with("proc/self/limits", "Max locked memory         8388608   8388608   bytes")
        .with("sys/block/nvme0n1/queue/scheduler", "none [mq-deadline] kyber")
        .with("sys/block/nvme0n1/queue/write_cache", "write back")
        .with("sys/class/infiniband/mlx5_0/ports/1/state", "4: ACTIVE")
        .with("sys/class/infiniband/mlx5_0/ports/1/link_layer", "Ethernet")
        .with("sys/class/infiniband/mlx5_0/device/net/ens1", "")
        .with("sys/class/net/ens1/mtu", "1500")
        .with("sys/class/infiniband/mlx5_1/ports/1/state", "1: DOWN");
    let report = examined(record);
    let expected = ["io-uring-disabled", "memlock", "kernel", "scheduler", "rdma-port", "rdma-mtu", "write-cache"];
    assert_eq!(topics(&report), expected);
    let remedy = |topic: &str| &report.findings.iter().find(|finding| finding.topic == topic).unwrap().remedy;
    let path = "/sys/block/nvme0n1/queue/scheduler";
    assert_eq!(
        *remedy("scheduler"),
        Remedy::command(format!("echo none > {path}"), format!("echo mq-deadline > {path}"))
    );
    assert_eq!(*remedy("rdma-mtu"), Remedy::command("ip link set ens1 mtu 4200", "ip link set ens1 mtu 1500"));
    assert_eq!(
        *remedy("io-uring-disabled"),
        Remedy::command("sysctl kernel.io_uring_disabled=0", "sysctl kernel.io_uring_disabled=2")
    );
}

#[test]
fn a_process_that_may_lock_what_it_likes_has_no_limit() {
    let limited = machine(2, &[0]).with("proc/self/limits", "Max locked memory         8388608   8388608   bytes");
    let status = |capabilities: &str| format!("Name:\tringway\nCapEff:\t{capabilities}");
    assert_eq!(topics(&examined(limited.clone().with("proc/self/status", status("0000000000003fff")))), ["memlock"]);
    assert!(examined(limited.with("proc/self/status", status("0000000000004000"))).findings.is_empty());
}

#[test]
fn what_may_not_be_read_is_said() {
    let report = examined(machine(2, &[0]).without(&format!("{CPU}/cpu0/cpufreq/scaling_governor")));
    assert_eq!(report.not_seen, ["/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"]);
    assert!(
        show(&report)
            .ends_with("not seen, for want of permission: /sys/devices/system/cpu/cpu0/cpufreq/scaling_governor\n")
    );
}

#[test]
fn a_record_of_another_version_and_a_file_that_is_none_are_refused_with_what_would_be_right() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("machine.json");
    for (text, said) in [
        ("{\"version\": 2}", "is a record of version 2; this program reads version 1"),
        ("[1]", "is no record of `ringway doctor --record`"),
        ("cores", "is no record of `ringway doctor --record`"),
        ("{\"version\": 1, \"cores\": 3}", "unknown field `cores`"),
    ] {
        fs::write(&path, text).unwrap();
        let failure = Record::open(&path).unwrap_err();
        assert!(failure.message.contains(said), "{text}: {}", failure.message);
    }
    let record = machine(4, &[1]);
    fs::write(&path, serde_json::to_string(&record).unwrap()).unwrap();
    assert_eq!(Record::open(&path).unwrap(), record);
}

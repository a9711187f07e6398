//! The benchmark: prints a table and JSON of every bar.

use std::time::Duration;

use ringway_perf::{cpu, echo};

fn main() {
    let cores = cpu::allowed();
    for depth in [1, 32, 128] {
        let r = echo::run(depth, Duration::from_secs(2), cores[0], cores[1 % cores.len()]).unwrap();
        println!("echo depth {depth}: {:.0}/s, client {:.0} ns", r.per_second, r.client_cpu_ns);
    }
}

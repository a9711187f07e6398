//! What a device operation costs through the ring: 4 KiB at random, at a fixed depth, one core.
//!
//! `device FILE|null|mem read|write DEPTH MILLISECONDS [SEED]`: on a file that exists and is written; prints operations a second and CPU time
//! an operation. To be set beside fio with ioengine=io_uring, fixedbufs=1, registerfiles=1, direct=1 on the same file.

use std::path::Path;

use rand::{Rng, SeedableRng};
use ringway_reactor::buf::{Buf, BufPool, BufPoolConfig};
use ringway_reactor::files::{Access, OpenFile};
use ringway_reactor::io::{Io, Op, Payload, Token, Wait};
use ringway_reactor::uring::{UringConfig, UringIo};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [path, what, depth, milliseconds, rest @ ..] = &arguments[..] else {
        panic!("device FILE|null|mem read|write DEPTH MILLISECONDS [SEED]");
    };
    let depth: usize = depth.parse().expect("a depth");
    let time_ns = milliseconds.parse::<u64>().expect("milliseconds") * 1_000_000;
    let seed = rest.first().map_or_else(rand::random, |text| text.parse().expect("a seed"));
    let mut random = rand::rngs::SmallRng::seed_from_u64(seed);
    let pool = BufPool::leak(&BufPoolConfig { classes: vec![(4096, depth)] }, 0);
    let mut io = UringIo::new(&UringConfig::new(vec![pool], 0)).expect("a ring");
    let file = match path.as_str() {
        "null" => OpenFile::null(1 << 40),
        "mem" => OpenFile::memory(1 << 30).expect("memory"),
        path => {
            OpenFile::open(Path::new(path), Access::ReadWrite, &mut |progress| eprintln!("{progress}")).expect("a file")
        }
    };
    let blocks = file.info().size / 4096;
    let file = io.add_file(&file).expect("a slot");
    let mut next = |buf: Buf| {
        let offset = random.random_range(0..blocks) * 4096;
        match what.as_str() {
            "write" => Op::Write { file, offset, data: buf.into(), durable: false },
            _ => Op::Read { file, offset, data: buf.into() },
        }
    };
    let started = io.now_precise();
    for number in 0..depth {
        io.submit(Token(number as u64), next(pool.get(4096).expect("a buffer for each of the depth")));
    }
    let (mut done, mut count) = (Vec::new(), 0u64);
    while io.now().since_ns(started) < time_ns {
        io.poll(Wait::No, &mut done);
        for completion in done.drain(..) {
            completion.result.expect("the device works");
            let Payload::Data(data) = completion.payload else { unreachable!("a buffer comes back") };
            let buf = data.into_own();
            io.submit(completion.token, next(buf));
            count += 1;
        }
    }
    let seconds = io.now().since_ns(started) as f64 / 1e9;
    let usage = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    let cpu_ns = usage.tv_sec as f64 * 1e9 + usage.tv_nsec as f64;
    println!("{:.0} operations/s, {:.0} ns CPU each (polling)", count as f64 / seconds, cpu_ns / count as f64);
}

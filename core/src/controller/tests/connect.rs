//! Connect, and who may.

use super::*;
use std::collections::BTreeSet;

use crate::controller::association::{AssociationState, HostIdentity, OnRecord};
use crate::ids::VolumeId;
use crate::limits::IO_QUEUES_MAX;
use crate::wire::DISCOVERY_NQN;
use crate::wire::command::{Fuse, admin, nvm};
use crate::wire::fabrics::{CATTR_NO_SQ_FLOW_CONTROL, CATTR_QUEUE_DELETION};

fn invalid(offset: u16, in_data: bool) -> Refusal {
    let result = u64::from(offset) | u64::from(in_data) << 16;
    Refusal { status: NvmeStatus::CONNECT_INVALID_PARAMETERS.dnr(), result }
}

fn refused(attempt: &Attempt, registry: &Registry, directory: &Directory) -> Refusal {
    attempt.make(registry, directory).map(|connected| panic!("{connected:?}")).unwrap_err()
}

#[test]
fn an_admin_queue_and_then_io_queues_make_one_association() {
    let directory = directory();
    let (registry, mut admin) = enabled(VOLUME, &directory);
    let association = Arc::clone(admin.association());
    assert_eq!((association.controller_id, association.keep_alive_ms()), (1, 5000));
    let first = connect_io(&registry, &directory, &admin, 1);
    let second = connect_io(&registry, &directory, &admin, 2);
    assert!(Arc::ptr_eq(first.association(), &association) && Arc::ptr_eq(second.association(), &association));
    assert_eq!((second.queue_id(), second.entries(), second.sq_flow_control()), (2, 128, true));
    assert_eq!(registry.attached_hosts(VolumeId(1)), [HOST]);
    assert_eq!(registry.len(), 1);
    assert_eq!(set(&mut admin, Configuration::SHUT_DOWN, &directory), NvmeStatus::SUCCESS);
    assert!(first.is_ended() && !association.is_dead());
}

#[test]
fn each_wrong_field_of_connect_is_named_in_the_refusal() {
    let (registry, directory) = (Registry::default(), directory());
    let long = format!("nqn.{}", "x".repeat(230));
    type Spoil = Box<dyn Fn(&mut Attempt)>;
    let rows: [(&str, Spoil, Refusal); 12] = [
        (
            "record format",
            Box::new(|a| a.connect.record_format = 1.into()),
            NvmeStatus::CONNECT_INCOMPATIBLE_FORMAT.dnr().into(),
        ),
        ("queue number", Box::new(|a| a.connect.queue_id = (IO_QUEUES_MAX + 1).into()), invalid(42, false)),
        ("queue of one entry", Box::new(|a| a.connect.sq_size = 0.into()), invalid(44, false)),
        ("queue too large", Box::new(|a| a.connect.sq_size = 256.into()), invalid(44, false)),
        ("queue far too large", Box::new(|a| a.connect.sq_size = 0xFFFF.into()), invalid(44, false)),
        ("queue deletion", Box::new(|a| a.connect.attributes = CATTR_QUEUE_DELETION), invalid(46, false)),
        ("controller", Box::new(|a| a.data.controller_id = 1.into()), invalid(16, true)),
        ("no host id", Box::new(|a| a.data.host_id = [0; 16]), invalid(0, true)),
        ("host name not terminated", Box::new(|a| a.data.host_nqn = [b'n'; 256]), invalid(512, true)),
        ("no host name", Box::new(|a| a.data.host_nqn = [0; 256]), invalid(512, true)),
        (
            "subsystem name too long",
            Box::new(move |a| a.data = ConnectData::new([9; 16], 0xFFFF, &long, HOST)),
            invalid(256, true),
        ),
        (
            "unknown volume",
            Box::new(|a| a.data = ConnectData::new([9; 16], 0xFFFF, "nqn.2026-11.io.ringway:w", HOST)),
            invalid(256, true),
        ),
    ];
    for (what, spoil, expected) in rows {
        assert_eq!(refused(&Attempt::admin(VOLUME).with(|a| spoil(a)), &registry, &directory), expected, "{what}");
    }
    assert!(registry.is_empty());
    assert!(Attempt::admin(VOLUME).make(&registry, &directory).is_ok());
}

#[test]
fn each_wrong_field_of_an_io_queue_is_named_in_the_refusal() {
    let directory = Directory::new(parts([record(1, "v"), record(2, "w")]));
    let (registry, mut admin) = enabled(VOLUME, &directory);
    let id = admin.association().controller_id;
    let rows = [
        ("unknown controller", Attempt::io(1, id + 1), invalid(16, true)),
        (
            "another volume",
            Attempt::io(1, id).with(|a| a.data = ConnectData::new([9; 16], id, "nqn.2026-11.io.ringway:w", HOST)),
            invalid(256, true),
        ),
        (
            "another host name",
            Attempt::io(1, id).with(|a| a.data = ConnectData::new([9; 16], id, VOLUME, "nqn.other")),
            invalid(512, true),
        ),
        ("another host id", Attempt::io(1, id).with(|a| a.data.host_id = [8; 16]), invalid(0, true)),
    ];
    for (what, attempt, expected) in rows {
        assert_eq!(refused(&attempt, &registry, &directory), expected, "{what}");
    }
    let (status, result, _) = send(&mut admin, &Sqe::set_features(7, 0x0001_0001), &directory);
    assert_eq!((status, result), (NvmeStatus::SUCCESS, 0x0001_0001));
    assert_eq!(refused(&Attempt::io(3, id), &registry, &directory), invalid(42, false), "two queues were agreed");
    let _first = connect_io(&registry, &directory, &admin, 1);
    let again = refused(&Attempt::io(1, id), &registry, &directory);
    assert_eq!(again.status, NvmeStatus::COMMAND_SEQUENCE_ERROR.dnr(), "a queue is connected once");
    assert_eq!(send(&mut admin, &Sqe::set_features(7, 0), &directory).0, NvmeStatus::COMMAND_SEQUENCE_ERROR.dnr());
}

#[test]
fn io_queues_need_an_enabled_controller_that_lives() {
    let (registry, directory) = (Registry::default(), directory());
    let mut admin = connect_admin(&registry, &directory, VOLUME);
    let attempt = Attempt::io(1, admin.association().controller_id);
    assert_eq!(refused(&attempt, &registry, &directory).status, NvmeStatus::COMMAND_SEQUENCE_ERROR.dnr());
    set(&mut admin, Configuration::ENABLE, &directory);
    assert!(attempt.make(&registry, &directory).is_ok());
    assert!(registry.end(admin.association()));
    let attempt = Attempt::io(2, admin.association().controller_id);
    assert_eq!(refused(&attempt, &registry, &directory), invalid(16, true));
    let discovery = connect_admin(&registry, &directory, DISCOVERY_NQN);
    let id = discovery.association().controller_id;
    let attempt = Attempt::io(1, id).with(|a| a.data = ConnectData::new([9; 16], id, DISCOVERY_NQN, HOST));
    assert_eq!(refused(&attempt, &registry, &directory), invalid(42, false), "discovery has no I/O queues");
}

#[test]
fn before_connect_nothing_else_is_taken() {
    let no = |sqe: Sqe| first_command(&sqe, 1024).unwrap_err().status;
    assert_eq!(no(Sqe::on_blocks(nvm::READ, 1, 0, 1)), NvmeStatus::COMMAND_SEQUENCE_ERROR.dnr());
    assert_eq!(no(fabrics::property_get(Property::Status)), NvmeStatus::COMMAND_SEQUENCE_ERROR.dnr());
    assert_eq!(no(Sqe::new(admin::KEEP_ALIVE, 0)), NvmeStatus::COMMAND_SEQUENCE_ERROR.dnr());
    let connect = Connect::new(0, 32, 0).sqe();
    assert!(first_command(&connect, 1024).is_ok());
    assert_eq!(no(connect.with_fuse(Fuse::First)), NvmeStatus::INVALID_FIELD.dnr());
    assert_eq!(no(connect.with_data(Sgl::in_capsule(512))), NvmeStatus::DATA_SGL_LENGTH_INVALID.dnr());
    let short = first_command(&connect, 1000).unwrap_err().status;
    assert_eq!(short, NvmeStatus::DATA_SGL_LENGTH_INVALID.dnr(), "the SGL reaches beyond the capsule");
    assert!(first_command(&connect.with_data(Sgl::transport(1024)), 0).is_ok());
}

#[test]
fn a_host_that_is_not_allowed_is_told_so() {
    let registry = Registry::default();
    let listed = directory_with(|record| record.allowed_hosts = vec!["nqn.other".into()]);
    let not_allowed = Refusal::from(NvmeStatus::CONNECT_INVALID_HOST.dnr());
    assert_eq!(refused(&Attempt::admin(VOLUME), &registry, &listed), not_allowed);
    let far = path("10.0.0.1:4420", "10.0.0.2:50000");
    let from_afar = Attempt::admin(VOLUME).with(|a| a.path = far);
    assert_eq!(refused(&from_afar, &registry, &directory()), not_allowed);
    assert!(from_afar.make(&registry, &directory_of(|parts| parts.insecure = true)).is_ok());
    let mine = directory_with(|record| record.allowed_hosts = vec![HOST.into()]);
    let elsewhere = from_afar.with(|a| a.path = path("10.0.0.1:4420", "10.0.0.3:50000"));
    assert!(elsewhere.make(&registry, &mine).is_ok());
    let mapped = path("[::]:4420", "[::ffff:127.0.0.1]:9");
    assert!(mapped.is_loopback());
}

#[test]
fn an_exclusive_volume_has_one_host_at_a_time() {
    let registry = Registry::default();
    let directory = directory_with(|record| record.exclusive = true);
    let first = connect_admin(&registry, &directory, VOLUME);
    let other = Attempt::admin(VOLUME).with(|a| a.data = ConnectData::new([8; 16], 0xFFFF, VOLUME, "nqn.other"));
    assert_eq!(refused(&other, &registry, &directory).status, NvmeStatus::CONNECT_CONTROLLER_BUSY, "it may try again");
    let second_path = Attempt::admin(VOLUME).with(|a| a.path = path("127.0.0.1:21321", "127.0.0.1:50001"));
    let second = second_path.make(&registry, &directory).unwrap();
    assert!(registry.end(first.association()) && registry.end(second.association()));
    let other = other.make(&registry, &directory).unwrap();
    let waits_for = registry.unfenced(other.association());
    assert_eq!(waits_for, [first.association().id, second.association().id], "theirs may still be at a device");
}

/// Of host `number`, under the volume's name with `said` behind it.
fn writer(number: u8, said: &str) -> Attempt {
    let nqn = format!("{VOLUME}{said}");
    Attempt::admin(VOLUME).with(|a| a.data = ConnectData::new([number; 16], CNTLID_DYNAMIC, &nqn, "nqn.writer"))
}

#[test]
fn of_hosts_that_ask_for_the_lease_one_has_it_and_the_next_waits_for_its_fence() {
    let (registry, directory) = (Registry::default(), directory());
    let first = writer(1, ",writer").make(&registry, &directory).unwrap();
    let refusal = refused(&writer(2, ",writer"), &registry, &directory);
    assert_eq!(refusal.status, NvmeStatus::RESERVATION_CONFLICT.dnr());
    let without = writer(3, "").make(&registry, &directory).unwrap();
    assert!(registry.unfenced(without.association()).is_empty(), "the lease binds those that ask for it");
    let queue = Attempt::io(1, first.association().controller_id);
    let queue = queue.with(|a| {
        a.data =
            ConnectData::new([1; 16], first.association().controller_id, &format!("{VOLUME},writer"), "nqn.writer");
    });
    assert_eq!(refused(&queue, &registry, &directory).status, NvmeStatus::COMMAND_SEQUENCE_ERROR.dnr(), "not enabled");
    assert!(registry.end(first.association()));
    let next = writer(2, ",writer").make(&registry, &directory).unwrap();
    assert_eq!(registry.unfenced(next.association()), [first.association().id], "its writes may still be at a device");
    let unknown = refused(&writer(4, ",reader"), &registry, &directory);
    assert!(unknown.status.is(NvmeStatus::CONNECT_INVALID_PARAMETERS), "{unknown:?}");
}

#[test]
fn who_lost_the_lease_to_another_writer_does_not_get_it_back() {
    let (registry, directory) = (Registry::default(), directory());
    let first = writer(1, ",writer").make(&registry, &directory).unwrap();
    registry.end(first.association());
    let again = writer(1, ",writer-again").make(&registry, &directory).unwrap();
    registry.end(again.association());
    let other = writer(2, ",writer").make(&registry, &directory).unwrap();
    registry.end(other.association());
    let refusal = refused(&writer(1, ",writer-again"), &registry, &directory);
    assert_eq!(refusal.status, NvmeStatus::RESERVATION_CONFLICT.dnr(), "what it would send again is older");
    writer(1, ",writer").make(&registry, &directory).unwrap();
}

#[test]
fn who_was_the_writer_last_is_known_from_a_process_before_this_one_too() {
    let (registry, directory) = (Registry::default(), directory());
    let host = |number: u8| HostIdentity { nqn: "nqn.writer".into(), id: [number; 16] };
    registry.remember_writer(VolumeId(1), host(2));
    let refusal = refused(&writer(1, ",writer-again"), &registry, &directory);
    assert_eq!(refusal.status, NvmeStatus::RESERVATION_CONFLICT.dnr(), "another has been it before the restart");
    let again = writer(2, ",writer-again").make(&registry, &directory).unwrap();
    assert_eq!(registry.writer(VolumeId(1)), Some(host(2)));
    assert!(registry.others_attached(VolumeId(1), [2; 16]).is_empty());
    assert_eq!(registry.others_attached(VolumeId(1), [1; 16]), ["nqn.writer"]);
    let hosts = BTreeSet::from(["nqn.writer".to_owned()]);
    registry.set_on_record(VolumeId(1), &hosts, Some(&host(1)), true);
    assert_eq!(again.association().on_record(), OnRecord::Asked, "its host is on record, and not as the writer");
    registry.set_on_record(VolumeId(1), &hosts, Some(&host(2)), true);
    assert_eq!(again.association().on_record(), OnRecord::Yes);
}

#[test]
fn c11_a_host_that_comes_back_is_not_answered_before_its_dead_association_is_fenced() {
    let (registry, directory) = (Registry::default(), directory());
    let old = connect_admin(&registry, &directory, VOLUME);
    assert!(registry.end(old.association()), "the first to notice fences");
    assert!(!registry.end(old.association()), "the others do not");
    let new = connect_admin(&registry, &directory, VOLUME);
    assert!(new.association().id > old.association().id);
    assert_eq!(registry.unfenced(new.association()), [old.association().id]);
    let other = Attempt::admin(VOLUME).with(|a| a.data = ConnectData::new([8; 16], 0xFFFF, VOLUME, "nqn.other"));
    let other = other.make(&registry, &directory).unwrap();
    assert!(registry.unfenced(other.association()).is_empty(), "another host need not wait");
    registry.fenced(old.association().id);
    assert!(registry.unfenced(new.association()).is_empty());
    registry.fenced(old.association().id);
}

#[test]
fn c11_connecting_again_by_the_same_path_ends_the_association_that_was_lost_unnoticed() {
    let (registry, directory) = (Registry::default(), directory());
    let old = connect_admin(&registry, &directory, VOLUME);
    let other_path = Attempt::admin(VOLUME).with(|a| a.path = path("127.0.0.2:4420", "127.0.0.1:50001"));
    assert!(
        matches!(other_path.make(&registry, &directory), Ok(Connected::Admin { superseded, .. }) if superseded.is_empty())
    );
    assert!(!old.association().is_dead(), "another path of the same host stays beside it");
    let by_uuid = format!("nqn.2014-08.org.nvmexpress:uuid:{}", record(1, "v").uuid);
    let again = Attempt::admin(&by_uuid).with(|a| a.path = path("127.0.0.1:4420", "127.0.0.1:50002"));
    let Ok(Connected::Admin { queue, superseded }) = again.make(&registry, &directory) else { panic!() };
    assert_eq!(superseded, [old.association().id], "by whatever name, it is the same volume");
    assert_eq!(old.association().state(), AssociationState::Dead);
    assert_eq!(registry.unfenced(queue.association()), superseded);
}

#[test]
fn controllers_are_bounded_and_their_numbers_come_round_late() {
    let (registry, directory) = (Registry::new(2), directory());
    let attempt = |n: u8| Attempt::admin(VOLUME).with(|a| a.data.host_id = [n; 16]);
    let first = attempt(1).make(&registry, &directory).unwrap();
    let _second = attempt(2).make(&registry, &directory).unwrap();
    assert_eq!(refused(&attempt(3), &registry, &directory).status, NvmeStatus::CONNECT_CONTROLLER_BUSY);
    let Ok(Connected::Admin { superseded, .. }) = attempt(1).make(&registry, &directory) else { panic!() };
    assert_eq!(superseded.len(), 1, "a host that comes back takes its own place");
    registry.fenced(first.association().id);
    let ended = registry.end_all(VolumeId(1));
    assert_eq!(ended.len(), 2);
    assert!(registry.is_empty() && registry.attached_hosts(VolumeId(1)).is_empty());
    let third = attempt(3).make(&registry, &directory).unwrap();
    assert_eq!(third.association().controller_id, 4, "1 is free, and yet its turn comes later");
}

#[test]
fn without_flow_control_no_queue_head_is_sent() {
    let (registry, directory) = (Registry::default(), directory());
    let attempt = Attempt::admin(VOLUME).with(|a| a.connect.attributes = CATTR_NO_SQ_FLOW_CONTROL);
    let Ok(Connected::Admin { queue, .. }) = attempt.make(&registry, &directory) else { panic!() };
    assert!(!queue.sq_flow_control());
    assert_eq!(queue.entries(), 32);
}

#[test]
fn a_silent_host_is_given_its_timeout_and_no_more() {
    let (registry, directory) = (Registry::default(), directory());
    let admin = connect_admin(&registry, &directory, VOLUME);
    let association = admin.association();
    let until = association.silent_until();
    assert_eq!(until.since_ns(NOW), 5_100_000_000);
    let later = NOW.plus_ns(3_000_000_000);
    association.hear(later);
    assert_eq!(association.silent_until().since_ns(later), 5_100_000_000, "any command is a sign of life");
    association.hear(NOW);
    assert_eq!(association.silent_until().since_ns(later), 5_100_000_000, "time does not run backwards");
    let without = Attempt::admin(DISCOVERY_NQN).with(|a| a.connect.keep_alive_ms = 0.into());
    let without = without.make(&registry, &directory).unwrap();
    assert_eq!(without.association().silent_until(), Instant::NEVER);
    let forever = Attempt::admin(DISCOVERY_NQN).with(|a| a.connect.keep_alive_ms = u32::MAX.into());
    assert!(forever.make(&registry, &directory).unwrap().association().keep_alive_ms() >= 4_294_967_000);
}

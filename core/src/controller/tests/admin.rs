//! Properties, features, events, abort.

use super::*;
use crate::controller::admin::{HeldCompletion, Verdict};
use crate::controller::association::AssociationState;
use crate::directory::SpaceLevel;
use crate::wire::DISCOVERY_NQN;
use crate::wire::command::{Fuse, admin};
use crate::wire::fabrics::{CSTS_FATAL, CSTS_READY, CSTS_SHUTDOWN_COMPLETE, Capabilities, VERSION_2_0, kind};
use crate::wire::features::{self, AsyncEvent};
use crate::wire::identify::read_namespace_list;
use crate::wire::log_page::page;

fn hold(queue: &mut AdminQueue, cid: u16, directory: &Directory) {
    let sqe = Sqe::new(admin::ASYNC_EVENT_REQUEST, 0).with_cid(cid);
    assert_eq!(queue.reply_len(&sqe, 0), Ok(0));
    assert_eq!(queue.on_command(&sqe, &mut [], directory, NOW), AdminAction::Hold);
}

fn event(cid: u16, event: AsyncEvent) -> Option<HeldCompletion> {
    Some(HeldCompletion { cid, result: u64::from(event.0), status: NvmeStatus::SUCCESS })
}

#[test]
fn a_controller_says_what_it_can_and_is_ready_once_it_is_enabled() {
    let (registry, directory) = (Registry::default(), directory());
    let mut queue = connect_admin(&registry, &directory, VOLUME);
    let get = |queue: &mut AdminQueue, property| send(queue, &fabrics::property_get(property), &directory);
    let cap = Capabilities(get(&mut queue, Property::Capabilities).1);
    assert_eq!((cap.queue_entries_max(), cap.page_bytes_min()), (256, 4096));
    assert_eq!(get(&mut queue, Property::Version).1, u64::from(VERSION_2_0));
    assert_ne!(get(&mut queue, Property::ReadyTimeouts).1, 0);
    assert_eq!(csts(&mut queue, &directory), 0);
    assert_eq!(set(&mut queue, Configuration::ENABLE, &directory), NvmeStatus::SUCCESS);
    assert_eq!(csts(&mut queue, &directory), u64::from(CSTS_READY));
    assert_eq!(get(&mut queue, Property::Configuration).1, u64::from(Configuration::ENABLE.0));
}

#[test]
fn a_configuration_that_cannot_be_served_is_a_fatal_status() {
    for bad in [1 << 4, 1 << 7, 1 << 11, 1 << 16, 1 << 20] {
        let (registry, directory) = (Registry::default(), directory());
        let mut queue = connect_admin(&registry, &directory, VOLUME);
        let configuration = Configuration(Configuration::ENABLE.0 ^ bad);
        assert_eq!(set(&mut queue, configuration, &directory), NvmeStatus::SUCCESS);
        assert_eq!(csts(&mut queue, &directory), u64::from(CSTS_FATAL), "{bad:#x}");
        assert_eq!(queue.association().state(), AssociationState::Connected);
    }
}

#[test]
fn shutdown_and_reset_end_an_association_for_good() {
    let directory = directory();
    let (_registry, mut queue) = enabled(VOLUME, &directory);
    assert_eq!(set(&mut queue, Configuration::SHUT_DOWN, &directory), NvmeStatus::SUCCESS);
    assert_eq!(csts(&mut queue, &directory), u64::from(CSTS_READY | CSTS_SHUTDOWN_COMPLETE));
    let (status, ..) = send(&mut queue, &Sqe::new(admin::KEEP_ALIVE, 0), &directory);
    assert_eq!(status, NvmeStatus::COMMAND_SEQUENCE_ERROR.dnr());
    let (_registry, mut queue) = enabled(VOLUME, &directory);
    assert_eq!(set(&mut queue, Configuration(0), &directory), NvmeStatus::SUCCESS);
    assert_eq!(csts(&mut queue, &directory), 0);
    assert_eq!(queue.association().state(), AssociationState::Ended);
    assert_eq!(set(&mut queue, Configuration::ENABLE, &directory), NvmeStatus::COMMAND_SEQUENCE_ERROR.dnr());
}

#[test]
fn properties_that_are_not_there_and_values_that_do_not_fit_are_refused() {
    let directory = directory();
    let (_registry, mut queue) = enabled(VOLUME, &directory);
    let invalid = NvmeStatus::INVALID_FIELD.dnr();
    let mut sqe = fabrics::property_get(Property::Status);
    sqe.cdw11 = 0x20.into();
    assert_eq!(send(&mut queue, &sqe, &directory).0, invalid, "subsystem reset");
    sqe.cdw11 = 0x1D.into();
    assert_eq!(send(&mut queue, &sqe, &directory).0, invalid, "between two");
    sqe.cdw10 = 2.into();
    assert_eq!(send(&mut queue, &sqe, &directory).0, invalid, "size 2");
    assert_eq!(send(&mut queue, &fabrics::property_set(Property::Status, 0), &directory).0, invalid, "read-only");
    let wide = fabrics::property_set(Property::Configuration, 1 << 32);
    assert_eq!(send(&mut queue, &wide, &directory).0, invalid);
    let again = Connect::new(0, 32, 0).sqe();
    assert_eq!(send(&mut queue, &again, &directory).0, NvmeStatus::COMMAND_SEQUENCE_ERROR.dnr());
    let disconnect = Sqe::new(crate::wire::command::FABRICS, u32::from(kind::DISCONNECT));
    assert_eq!(send(&mut queue, &disconnect, &directory).0, NvmeStatus::INVALID_OPCODE.dnr());
}

#[test]
fn before_enable_only_properties_answer() {
    let (registry, directory) = (Registry::default(), directory());
    let mut queue = connect_admin(&registry, &directory, VOLUME);
    for sqe in [Sqe::identify(1, 0).with_data(Sgl::transport(4096)), Sqe::get_features(7, 0), Sqe::abort(0, 1)] {
        assert_eq!(send(&mut queue, &sqe, &directory).0, NvmeStatus::COMMAND_SEQUENCE_ERROR.dnr());
    }
}

#[test]
fn commands_of_the_wrong_shape_are_refused() {
    let directory = directory();
    let (_registry, mut queue) = enabled(VOLUME, &directory);
    let identify = Sqe::identify(1, 0).with_data(Sgl::transport(4096));
    let mut prp = identify;
    prp.flags = 0;
    assert_eq!(send(&mut queue, &prp, &directory).0, NvmeStatus::INVALID_FIELD.dnr());
    assert_eq!(send(&mut queue, &identify.with_fuse(Fuse::First), &directory).0, NvmeStatus::INVALID_FIELD.dnr());
    for (sgl, expected) in [
        (Sgl::transport(4095), NvmeStatus::DATA_SGL_LENGTH_INVALID),
        (Sgl::transport(8192), NvmeStatus::DATA_SGL_LENGTH_INVALID),
        (Sgl::in_capsule(0), NvmeStatus::SGL_DESCRIPTOR_TYPE_INVALID),
        (Sgl { kind: 0x40, ..Sgl::transport(4096) }, NvmeStatus::SGL_DESCRIPTOR_TYPE_INVALID),
        (Sgl { kind: 0, ..Sgl::transport(4096) }, NvmeStatus::SGL_DESCRIPTOR_TYPE_INVALID),
    ] {
        assert_eq!(send(&mut queue, &identify.with_data(sgl), &directory).0, expected.dnr(), "{sgl:?}");
    }
    for opcode in [0x00, 0x01, 0x04, 0x0D, 0x10, 0x80, 0xC0] {
        assert_eq!(send(&mut queue, &Sqe::new(opcode, 0), &directory).0, NvmeStatus::INVALID_OPCODE.dnr());
    }
}

#[test]
fn features_are_read_and_set_and_what_is_not_there_is_refused() {
    let directory = directory();
    let (_registry, mut queue) = enabled(VOLUME, &directory);
    let mut get = |feature, value| send(&mut queue, &Sqe::get_features(feature, value), &directory);
    assert_eq!(get(features::VOLATILE_WRITE_CACHE, 0).1, 1);
    assert_eq!(get(features::NUMBER_OF_QUEUES, 0).1, 127 << 16 | 127);
    assert_eq!(get(features::KEEP_ALIVE_TIMER, 0).1, 5000);
    assert_eq!(get(features::TEMPERATURE_THRESHOLD, 0).1, 0xFFFF);
    assert_eq!(get(features::TEMPERATURE_THRESHOLD, 1 << 16).0, NvmeStatus::INVALID_FIELD.dnr());
    for unknown in [0x03, 0x08, 0x0C, 0x0E, 0x10, 0x82, 0x84, 0xC0] {
        assert_eq!(get(unknown, 0).0, NvmeStatus::INVALID_FIELD.dnr(), "{unknown:#x}");
    }
    let mut set = |feature, value| send(&mut queue, &Sqe::set_features(feature, value), &directory);
    assert_eq!(set(features::KEEP_ALIVE_TIMER, 2001).0, NvmeStatus::SUCCESS);
    assert_eq!(set(features::POWER_MANAGEMENT, 0).0, NvmeStatus::SUCCESS);
    assert_eq!(set(features::POWER_MANAGEMENT, 1).0, NvmeStatus::INVALID_FIELD.dnr());
    assert_eq!(set(features::VOLATILE_WRITE_CACHE, 2).0, NvmeStatus::INVALID_FIELD.dnr());
    assert_eq!(set(features::NUMBER_OF_QUEUES, 0xFFFF).0, NvmeStatus::INVALID_FIELD.dnr());
    assert_eq!(set(features::NUMBER_OF_QUEUES, 999 << 16 | 999).1, 127 << 16 | 127);
    assert_eq!(set(features::HOST_IDENTIFIER, 1).0, NvmeStatus::COMMAND_SEQUENCE_ERROR.dnr());
    assert_eq!(set(features::ARBITRATION, 1 << 31).0, NvmeStatus::SUCCESS);
    let mut saved = Sqe::set_features(features::ARBITRATION, 0);
    saved.cdw10 = (saved.cdw10.get() | 1 << 31).into();
    assert_eq!(send(&mut queue, &saved, &directory).0, NvmeStatus::FEATURE_NOT_SAVEABLE.dnr());
    let mut default = Sqe::get_features(features::ARBITRATION, 0);
    default.cdw10 = (default.cdw10.get() | 1 << 8).into();
    assert_eq!(send(&mut queue, &default, &directory).0, NvmeStatus::INVALID_FIELD.dnr());
    let get = |queue: &mut AdminQueue, feature| send(queue, &Sqe::get_features(feature, 0), &directory).1;
    assert_eq!(get(&mut queue, features::KEEP_ALIVE_TIMER), 3000, "rounded up to whole seconds");
    assert_eq!(get(&mut queue, features::ARBITRATION), 1 << 31);
    let id = fetch(&mut queue, Sqe::get_features(features::HOST_IDENTIFIER, 1), 16, &directory).unwrap();
    assert_eq!(id, [9; 16]);
    let narrow = fetch(&mut queue, Sqe::get_features(features::HOST_IDENTIFIER, 0), 16, &directory);
    assert_eq!(narrow, Err(NvmeStatus::INVALID_FIELD.dnr()), "64-bit identifiers are not for fabrics");
}

#[test]
fn without_the_write_cache_each_write_is_durable() {
    let directory = directory();
    let (registry, mut queue) = enabled(VOLUME, &directory);
    let io = connect_io(&registry, &directory, &queue, 1);
    let write = Sqe::on_blocks(1, 1, 0, 8).with_data(Sgl::transport(4096));
    let fua = |io: &IoQueue| format!("{:?}", io.check(&write, 0, &directory).unwrap().work).contains("fua: true");
    assert!(!fua(&io));
    assert_eq!(
        send(&mut queue, &Sqe::set_features(features::VOLATILE_WRITE_CACHE, 0), &directory).0,
        NvmeStatus::SUCCESS
    );
    assert!(fua(&io));
    assert_eq!(send(&mut queue, &Sqe::get_features(features::VOLATILE_WRITE_CACHE, 0), &directory).1, 0);
}

#[test]
fn a_resized_volume_is_an_event_and_an_entry_of_the_changed_list() {
    let directory = directory();
    let (_registry, mut queue) = enabled(VOLUME, &directory);
    let configuration = features::EVENT_NAMESPACE | features::EVENT_SMART;
    send(&mut queue, &Sqe::set_features(features::ASYNC_EVENT_CONFIGURATION, configuration), &directory);
    hold(&mut queue, 40, &directory);
    hold(&mut queue, 41, &directory);
    assert_eq!(queue.on_directory(&Directory::new(parts([record(1, "v"), record(2, "w")]))), Verdict::Keep);
    assert_eq!(queue.take_completion(), None, "another volume is none of its business");
    let grown = directory_with(|record| record.size *= 2);
    assert_eq!(queue.on_directory(&grown), Verdict::Keep);
    assert_eq!(queue.take_completion(), event(40, AsyncEvent::NAMESPACE_CHANGED));
    assert_eq!(queue.take_completion(), None);
    let removed = Directory::new(parts([]));
    assert_eq!(queue.on_directory(&removed), Verdict::Keep);
    assert_eq!(queue.take_completion(), None, "masked until the list is read");
    let mut changed = |keep| {
        let sqe = Sqe::get_log_page(page::CHANGED_NAMESPACES, 0xFFFF_FFFF, 0, 4096, keep);
        let list = fetch(&mut queue, sqe, 4096, &grown).unwrap();
        read_namespace_list(&list).collect::<Vec<_>>()
    };
    assert_eq!(changed(true), [1], "kept");
    assert_eq!(changed(false), [1]);
    assert_eq!(changed(false), [0u32; 0], "read");
    queue.on_directory(&grown);
    assert_eq!(queue.take_completion(), event(41, AsyncEvent::NAMESPACE_CHANGED), "it came back");
}

#[test]
fn a_pool_that_fills_is_an_event_at_each_level_and_a_warning_in_the_smart_log() {
    let directory = directory();
    let (_registry, mut queue) = enabled(VOLUME, &directory);
    send(&mut queue, &Sqe::set_features(features::ASYNC_EVENT_CONFIGURATION, features::EVENT_SMART), &directory);
    let smart = Sqe::get_log_page(page::SMART, 0xFFFF_FFFF, 0, 512, false);
    let mut cid = 0;
    for (space, spare) in [(SpaceLevel::Above80, 19), (SpaceLevel::Above90, 9), (SpaceLevel::Above95, 4)] {
        let fuller = directory_of(|parts| parts.space = space);
        queue.on_directory(&fuller);
        hold(&mut queue, cid, &directory);
        assert_eq!(queue.take_completion(), event(cid, AsyncEvent::SPARE_BELOW_THRESHOLD), "{space:?}");
        let log = fetch(&mut queue, smart, 512, &fuller).unwrap();
        assert_eq!((log[0], log[3], log[4]), (1, spare, 20));
        cid += 1;
    }
    queue.on_directory(&directory);
    hold(&mut queue, cid, &directory);
    assert_eq!(queue.take_completion(), None, "space that comes back is no warning");
    assert_eq!(fetch(&mut queue, smart, 512, &directory).unwrap()[..5], [0, 0, 0, 100, 20]);
    let read_only = directory_of(|parts| parts.read_only = true);
    queue.on_directory(&read_only);
    assert_eq!(queue.take_completion(), event(cid, AsyncEvent::RELIABILITY_DEGRADED));
    assert_eq!(fetch(&mut queue, smart, 512, &read_only).unwrap()[0], 8);
}

#[test]
fn event_requests_are_bounded_and_can_be_aborted() {
    let directory = directory();
    let (_registry, mut queue) = enabled(VOLUME, &directory);
    for cid in 10..14 {
        hold(&mut queue, cid, &directory);
    }
    let fifth = Sqe::new(admin::ASYNC_EVENT_REQUEST, 0).with_cid(14);
    assert_eq!(send(&mut queue, &fifth, &directory).0, NvmeStatus::ASYNC_EVENT_LIMIT_EXCEEDED.dnr());
    assert_eq!(send(&mut queue, &Sqe::abort(0, 12), &directory), (NvmeStatus::SUCCESS, 0, vec![]));
    let aborted = HeldCompletion { cid: 12, result: 0, status: NvmeStatus::ABORT_REQUESTED };
    assert_eq!(queue.take_completion(), Some(aborted));
    assert_eq!(queue.take_completion(), None);
    assert_eq!(send(&mut queue, &Sqe::abort(0, 12), &directory).1, 1, "it is not there any more");
    assert_eq!(send(&mut queue, &Sqe::abort(1, 13), &directory).1, 1, "that is another queue's");
    hold(&mut queue, 14, &directory);
}

#[test]
fn a_host_that_is_taken_off_the_list_has_to_go() {
    let directory = directory();
    let (_registry, mut queue) = enabled(VOLUME, &directory);
    let listed = |hosts: &[&str]| directory_with(|r| r.allowed_hosts = hosts.iter().map(|&h| h.to_owned()).collect());
    assert_eq!(queue.on_directory(&listed(&[HOST, "nqn.other"])), Verdict::Keep);
    assert_eq!(queue.on_directory(&listed(&["nqn.other"])), Verdict::End);
    let (_registry, mut queue) = enabled(VOLUME, &directory);
    assert_eq!(queue.on_directory(&Directory::new(parts([record(1, "renamed")]))), Verdict::Keep);
}

#[test]
fn a_discovery_controller_tells_of_volumes_that_come_and_go() {
    let directory = directory();
    let (_registry, mut queue) = enabled(DISCOVERY_NQN, &directory);
    send(&mut queue, &Sqe::set_features(features::ASYNC_EVENT_CONFIGURATION, features::EVENT_DISCOVERY), &directory);
    hold(&mut queue, 1, &directory);
    queue.on_directory(&directory_with(|record| record.size *= 2));
    assert_eq!(queue.take_completion(), None, "sizes are not in the log");
    queue.on_directory(&Directory::new(parts([record(1, "v"), record(2, "w")])));
    assert_eq!(queue.take_completion(), event(1, AsyncEvent::DISCOVERY_CHANGED));
    for (sqe, expected) in [
        (Sqe::get_features(features::NUMBER_OF_QUEUES, 0), NvmeStatus::INVALID_FIELD),
        (Sqe::get_features(features::VOLATILE_WRITE_CACHE, 0), NvmeStatus::INVALID_FIELD),
        (Sqe::abort(0, 1), NvmeStatus::INVALID_OPCODE),
        (Sqe::identify(0, 1).with_data(Sgl::transport(4096)), NvmeStatus::INVALID_FIELD),
        (Sqe::get_log_page(page::SMART, 0, 0, 512, false).with_data(Sgl::transport(512)), NvmeStatus::INVALID_LOG_PAGE),
    ] {
        assert_eq!(send(&mut queue, &sqe, &directory).0, expected.dnr(), "{sqe:?}");
    }
}

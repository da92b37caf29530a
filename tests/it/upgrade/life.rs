//! What clients notice of an upgrade: nothing.

use std::time::Duration;

use super::Upgrade;
use crate::lives;

#[test]
fn idle_connections_stay_through_five_upgrades() {
    lives::idle_connections_stay(&Upgrade, 5);
}

#[test]
fn upgrades_one_after_the_other_are_noticed_by_nobody() {
    lives::nobody_notices(&Upgrade, 10, Duration::ZERO);
}

#[test]
#[ignore = "takes 15 seconds"]
fn ten_upgrades_one_each_second_are_noticed_by_nobody() {
    lives::nobody_notices(&Upgrade, 10, Duration::from_secs(1));
}

#[test]
fn upgrades_of_workers_with_threads_are_noticed_by_nobody() {
    lives::nobody_notices_with_threads(&Upgrade, 5);
}

#[test]
fn half_a_request_goes_along() {
    lives::half_a_request_goes_along(&Upgrade);
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    lives::pipelined_requests_are_answered_in_order(&Upgrade);
}

#[test]
fn a_slow_body_goes_on_with_new_workers() {
    lives::a_slow_body_goes_on_with_new_workers(&Upgrade);
}

#[test]
fn the_ready_go_to_new_workers() {
    lives::the_ready_go_to_new_workers(&Upgrade);
}

#[test]
fn a_unix_socket_stays() {
    lives::a_unix_socket_stays(&Upgrade);
}

#[test]
fn new_workers_are_replaced_too() {
    lives::new_workers_are_replaced_too(&Upgrade);
}

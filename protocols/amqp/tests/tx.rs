//! Class tx: what is held until a commit, what core is asked then, and what the client hears.

mod script;

use rocketbridge_amqp::codec::Method;
use rocketbridge_core::boundary::{Reject, Settle};
use rocketbridge_core::request::{Commit, Refusal, Reply, Request};
use script::*;

const SELECT: Method<'static> = Method::TxSelect {};
const COMMIT: Method<'static> = Method::TxCommit {};
const ROLLBACK: Method<'static> = Method::TxRollback {};

fn transactional() -> Script {
    let mut script = Script::opened();
    script.open_channel(1);
    script.method(1, &SELECT);
    script.expect(&[(1, "tx.select-ok")]);
    script
}

fn committed(script: &mut Script) -> (rocketbridge_core::boundary::RequestId, Commit) {
    match script.request() {
        (id, Request::Commit(commit)) => (id, commit),
        (_, other) => panic!("{other:?}"),
    }
}

fn bodies(commit: &Commit) -> Vec<&[u8]> {
    commit.publishes.iter().map(|publish| &publish.body[..]).collect()
}

#[test]
fn nothing_is_published_or_settled_before_the_commit_and_all_of_it_then() {
    let mut script = transactional();
    let subscription = script.consume(1, b"q", b"c");
    for sequence in 10..14 {
        script.deliver(subscription, sequence, true);
    }
    script.sent();
    script.publish(1, b"", b"a", b"\x00\x00", b"one");
    script.method(1, &ack(2, true));
    script.method(
        1,
        &Method::BasicReject {
            delivery_tag: 4,
            requeue: true,
        },
    );
    script.publish(1, b"", b"b", b"\x00\x00", b"two");
    assert!(script.published().is_empty() && script.settled().is_empty());
    script.method(1, &COMMIT);
    let (id, commit) = committed(&mut script);
    assert_eq!(bodies(&commit), [b"one", b"two"]);
    assert_eq!(
        commit.settlements,
        [
            settled(subscription, 10, 2, Settle::Ack),
            settled(subscription, 13, 1, Settle::Release)
        ]
    );
    assert_eq!(script.sent(), b"", "not before core has answered");
    script.reply(id, Ok(Reply::Done));
    script.expect(&[(1, "tx.commit-ok")]);
    // A new transaction has begun; tag 3 is still open.
    script.method(1, &ack(3, false));
    script.method(1, &COMMIT);
    let (_, commit) = committed(&mut script);
    assert_eq!(commit.settlements, [settled(subscription, 12, 1, Settle::Ack)]);
}

#[test]
fn a_rollback_forgets_publishes_and_leaves_deliveries_unsettled() {
    let mut script = transactional();
    let subscription = script.consume(1, b"q", b"c");
    script.deliver(subscription, 7, true);
    script.sent();
    script.publish(1, b"", b"a", b"\x00\x00", b"one");
    script.method(1, &ack(1, false));
    script.method(1, &ROLLBACK);
    script.expect(&[(1, "tx.rollback-ok")]);
    assert!(script.published().is_empty() && script.settled().is_empty());
    script.method(1, &ack(1, false));
    script.method(1, &COMMIT);
    let (_, commit) = committed(&mut script);
    assert!(commit.publishes.is_empty());
    assert_eq!(commit.settlements, [settled(subscription, 7, 1, Settle::Ack)]);
}

#[test]
fn an_empty_transaction_commits_at_once_and_a_tag_is_settled_once() {
    let mut script = transactional();
    script.method(1, &COMMIT);
    script.expect(&[(1, "tx.commit-ok")]);
    let subscription = script.consume(1, b"q", b"c");
    script.deliver(subscription, 7, true);
    script.sent();
    script.method(1, &ack(1, false));
    script.method(1, &ack(1, false));
    script.expect_channel_close(1, 406, "PRECONDITION_FAILED - unknown delivery tag 1", (60, 80));
    // The channel's end gives back what was only settled in the transaction.
    assert_eq!(script.settled(), [settled(subscription, 7, 1, Settle::Release)]);
}

#[test]
fn transactions_and_confirms_exclude_each_other() {
    let mut script = transactional();
    script.method(1, &Method::ConfirmSelect { no_wait: false });
    let text = "PRECONDITION_FAILED - cannot switch from tx to confirm mode";
    script.expect_channel_close(1, 406, text, (85, 10));
    let mut script = Script::opened();
    script.open_channel(1);
    script.confirm_select(1);
    script.method(1, &SELECT);
    let text = "PRECONDITION_FAILED - cannot switch from confirm to tx mode";
    script.expect_channel_close(1, 406, text, (90, 10));
    for (method, number) in [(COMMIT, 20), (ROLLBACK, 30)] {
        let mut script = Script::opened();
        script.open_channel(1);
        script.method(1, &method);
        let text = "PRECONDITION_FAILED - channel is not transactional";
        script.expect_channel_close(1, 406, text, (90, number));
    }
}

#[test]
fn what_core_refuses_ends_the_channel_with_the_reason_of_that_publish() {
    let mut script = transactional();
    script.publish(1, b"", b"a", b"\x00\x00", b"one");
    script.publish(1, b"amq.fanout", b"", b"\x00\x00", b"two");
    script.method(1, &COMMIT);
    let (id, _) = committed(&mut script);
    let reject = Reject::NoExchange;
    script.reply(id, Err(Refusal::Rejected { index: 1, reject }));
    let text = "NOT_FOUND - no exchange 'amq.fanout' in vhost '/'";
    script.expect_channel_close(1, 404, text, (90, 20));
}

#[test]
fn a_mandatory_message_comes_back_before_commit_ok() {
    let mut script = transactional();
    script.publish(1, b"", b"nobody", b"\x00\x00", b"lost");
    script.method(1, &COMMIT);
    let (id, commit) = committed(&mut script);
    script.events(vec![returned(&commit.publishes[0]), reply(id, Ok(Reply::Done))]);
    let sent = script.sent();
    let names: Vec<_> = frames(&sent).iter().filter(|f| f.kind == 1).map(|f| f.name()).collect();
    assert_eq!(names, ["basic.return", "tx.commit-ok"]);
}

#[test]
fn a_transaction_beyond_its_limits_is_not_committed() {
    let mut script = transactional();
    for _ in 0..=Commit::ITEMS_MAX {
        script.publish(1, b"", b"a", b"\x00\x00", b"x");
    }
    script.method(1, &COMMIT);
    let text = "PRECONDITION_FAILED - the transaction is larger than 10000 messages and settlements or 16777216 octets";
    script.expect_channel_close(1, 406, text, (90, 20));
}

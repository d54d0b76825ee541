//! What a name server answers: routes and clusters, as JSON without white space, which the Go client
//! cannot bear.

use bytes::{BufMut, BytesMut};

use crate::codec::{push_number, push_string};
use crate::config::Config;

/// May be read.
pub const PERM_READ: u32 = 4;
/// May be written.
pub const PERM_WRITE: u32 = 2;
/// Producers take it for topics that do not exist yet.
pub const PERM_INHERIT: u32 = 1;

/// From this version on (4.9.4) clients want map keys in quotes; before, fastjson's way was without.
const QUOTED_SINCE: i32 = 401;

/// Whether the keys of broker addresses are quoted for a client of that version.
pub fn is_quoted(version: i32, accepts_standard_only: bool) -> bool {
    version >= QUOTED_SINCE || accepts_standard_only
}

/// What a route says of a topic.
#[derive(Clone, Copy, Debug)]
pub struct Route<'a> {
    /// The broker's address for the client that asks.
    pub address: &'a str,
    /// Message queues, for reading and for writing.
    pub queues: u32,
    /// The sum of `PERM_*`.
    pub perm: u32,
    /// Whether keys of addresses are in quotes.
    pub quoted: bool,
}

/// The body of a route.
pub fn route_body(config: &Config, route: Route<'_>) -> BytesMut {
    let mut out = BytesMut::with_capacity(384);
    out.put_slice(b"{\"brokerDatas\":[");
    push_broker(&mut out, config, route.address, route.quoted);
    out.put_slice(b"],\"filterServerTable\":{},\"queueDatas\":[{\"brokerName\":");
    push_string(&mut out, config.broker_name.as_bytes());
    out.put_slice(b",\"perm\":");
    push_number(&mut out, i64::from(route.perm));
    out.put_slice(b",\"readQueueNums\":");
    push_number(&mut out, i64::from(route.queues));
    out.put_slice(b",\"topicSysFlag\":0,\"writeQueueNums\":");
    push_number(&mut out, i64::from(route.queues));
    out.put_slice(b"}]}");
    out
}

/// The body that tells all brokers and clusters. Keys are quoted: fastjson reads both.
pub fn cluster_body(config: &Config, address: &str) -> BytesMut {
    let mut out = BytesMut::with_capacity(256);
    out.put_slice(b"{\"brokerAddrTable\":{");
    push_string(&mut out, config.broker_name.as_bytes());
    out.put_u8(b':');
    push_broker(&mut out, config, address, true);
    out.put_slice(b"},\"clusterAddrTable\":{");
    push_string(&mut out, config.cluster_name.as_bytes());
    out.put_slice(b":[");
    push_string(&mut out, config.broker_name.as_bytes());
    out.put_slice(b"]}}");
    out
}

fn push_broker(out: &mut BytesMut, config: &Config, address: &str, quoted: bool) {
    let master: &[u8] = if quoted { b"\"0\"" } else { b"0" };
    out.put_slice(b"{\"brokerAddrs\":{");
    out.put_slice(master);
    out.put_u8(b':');
    push_string(out, address.as_bytes());
    out.put_slice(b"},\"brokerName\":");
    push_string(out, config.broker_name.as_bytes());
    out.put_slice(b",\"cluster\":");
    push_string(out, config.cluster_name.as_bytes());
    out.put_slice(b",\"enableActingMaster\":false}");
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUTE: Route<'_> = Route {
        address: "127.0.0.1:10911",
        queues: 4,
        perm: PERM_READ | PERM_WRITE,
        quoted: true,
    };

    #[test]
    fn a_route_is_what_rocketmq_sends() {
        assert_eq!(
            route_body(&Config::default(), ROUTE),
            r#"{"brokerDatas":[{"brokerAddrs":{"0":"127.0.0.1:10911"},"brokerName":"rocketbridge","cluster":"DefaultCluster","enableActingMaster":false}],"filterServerTable":{},"queueDatas":[{"brokerName":"rocketbridge","perm":6,"readQueueNums":4,"topicSysFlag":0,"writeQueueNums":4}]}"#
        );
        let unquoted = Route { quoted: false, ..ROUTE };
        assert_eq!(
            route_body(&Config::default(), unquoted),
            r#"{"brokerDatas":[{"brokerAddrs":{0:"127.0.0.1:10911"},"brokerName":"rocketbridge","cluster":"DefaultCluster","enableActingMaster":false}],"filterServerTable":{},"queueDatas":[{"brokerName":"rocketbridge","perm":6,"readQueueNums":4,"topicSysFlag":0,"writeQueueNums":4}]}"#
        );
    }

    #[test]
    fn keys_are_quoted_for_new_clients_and_for_those_that_ask() {
        assert!(!is_quoted(317, false));
        assert!(is_quoted(317, true));
        assert!(!is_quoted(400, false));
        assert!(is_quoted(401, false));
    }

    #[test]
    fn a_cluster_is_one_broker() {
        assert_eq!(
            cluster_body(&Config::default(), "[::1]:10911"),
            r#"{"brokerAddrTable":{"rocketbridge":{"brokerAddrs":{"0":"[::1]:10911"},"brokerName":"rocketbridge","cluster":"DefaultCluster","enableActingMaster":false}},"clusterAddrTable":{"DefaultCluster":["rocketbridge"]}}"#
        );
    }
}

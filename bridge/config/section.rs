//! Sections of the configuration that mix the bridge's keys (where to listen) with a protocol's own.
//!
//! serde's `flatten` would do that but cannot refuse unknown keys; here the keys that end in `listen` are
//! picked out on the way and everything else goes to the protocol's type as it comes.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::{MapAccessDeserializer, StringDeserializer};
use serde::de::{DeserializeSeed, Error, IntoDeserializer, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// One protocol: where it listens (default `127.0.0.1:PORT`; an empty list turns it off) and its settings.
#[derive(Clone, Debug)]
pub struct Section<C, const PORT: u16> {
    /// `host:port` each. Port 0 lets the system choose.
    pub listen: Vec<String>,
    /// The protocol's own settings.
    pub protocol: C,
}

impl<C: Default, const PORT: u16> Default for Section<C, PORT> {
    fn default() -> Self {
        Self {
            listen: loopback(&[PORT]),
            protocol: C::default(),
        }
    }
}

impl<'de, C: Default + Deserialize<'de>, const PORT: u16> Deserialize<'de> for Section<C, PORT> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut section = Self::default();
        section.protocol = split(deserializer, &mut [("listen", &mut section.listen)])?;
        Ok(section)
    }
}

/// A protocol that browsers speak too, over WebSocket.
#[derive(Clone, Debug)]
pub struct WebSection<C, const PORT: u16, const WEB_PORT: u16> {
    /// `host:port` each, default `127.0.0.1:PORT`.
    pub listen: Vec<String>,
    /// Where it is spoken over WebSocket, default `127.0.0.1:WEB_PORT`. A plain GET there is answered with the paths that
    /// lead to it.
    pub websocket_listen: Vec<String>,
    /// The protocol's own settings.
    pub protocol: C,
}

impl<C: Default, const PORT: u16, const WEB_PORT: u16> Default for WebSection<C, PORT, WEB_PORT> {
    fn default() -> Self {
        Self {
            listen: loopback(&[PORT]),
            websocket_listen: loopback(&[WEB_PORT]),
            protocol: C::default(),
        }
    }
}

impl<'de, C, const PORT: u16, const WEB_PORT: u16> Deserialize<'de> for WebSection<C, PORT, WEB_PORT>
where
    C: Default + Deserialize<'de>,
{
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut section = Self::default();
        section.protocol = split(
            deserializer,
            &mut [
                ("listen", &mut section.listen),
                ("websocket_listen", &mut section.websocket_listen),
            ],
        )?;
        Ok(section)
    }
}

/// RocketMQ remoting: broker and name server are one protocol on two kinds of addresses.
#[derive(Clone, Debug)]
pub struct RemotingSection {
    /// The broker's addresses. Default ports 10911 and 10909 (where clients expect a second one).
    pub listen: Vec<String>,
    /// The name server's. Default port 9876.
    pub name_server_listen: Vec<String>,
    /// The protocol's own settings.
    pub protocol: rocketbridge_remoting::Config,
}

impl Default for RemotingSection {
    fn default() -> Self {
        Self {
            listen: loopback(&[10911, 10909]),
            name_server_listen: loopback(&[9876]),
            protocol: rocketbridge_remoting::Config::default(),
        }
    }
}

impl<'de> Deserialize<'de> for RemotingSection {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut section = Self::default();
        section.protocol = split(
            deserializer,
            &mut [
                ("listen", &mut section.listen),
                ("name_server_listen", &mut section.name_server_listen),
            ],
        )?;
        Ok(section)
    }
}

fn loopback(ports: &[u16]) -> Vec<String> {
    ports.iter().map(|port| format!("127.0.0.1:{port}")).collect()
}

/// A key of ours and where its value goes.
type Own<'a> = (&'static str, &'a mut Vec<String>);

fn split<'de, C, D>(deserializer: D, own: &mut [Own<'_>]) -> Result<C, D::Error>
where
    C: Deserialize<'de>,
    D: Deserializer<'de>,
{
    deserializer.deserialize_map(SplitVisitor {
        own,
        protocol: PhantomData,
    })
}

struct SplitVisitor<'a, 'b, C> {
    own: &'a mut [Own<'b>],
    protocol: PhantomData<C>,
}

impl<'de, C: Deserialize<'de>> Visitor<'de> for SplitVisitor<'_, '_, C> {
    type Value = C;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a table")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<C, A::Error> {
        C::deserialize(MapAccessDeserializer::new(Split { map, own: self.own }))
    }
}

/// A map without our keys.
struct Split<'a, 'b, A> {
    map: A,
    own: &'a mut [Own<'b>],
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Split<'_, '_, A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, A::Error> {
        let mut seed = Some(seed);
        loop {
            let key = self.map.next_key_seed(KeySeed {
                own: self.own,
                seed: &mut seed,
            })?;
            match key {
                None => return Ok(None),
                Some(Key::Protocol(key)) => return Ok(Some(key)),
                Some(Key::Own(index)) => {
                    let addresses: Vec<Address> = self.map.next_value()?;
                    *self.own[index].1 = addresses.into_iter().map(|address| address.0).collect();
                }
            }
        }
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, A::Error> {
        self.map.next_value_seed(seed)
    }
}

enum Key<K> {
    Own(usize),
    Protocol(K),
}

/// Runs inside the map's own key so that errors get its place in the file.
struct KeySeed<'a, 'b, K> {
    own: &'a [Own<'b>],
    seed: &'a mut Option<K>,
}

impl<'de, K: DeserializeSeed<'de>> DeserializeSeed<'de> for KeySeed<'_, '_, K> {
    type Value = Key<K::Value>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        let key = String::deserialize(deserializer)?;
        if let Some(index) = self.own.iter().position(|(name, _)| *name == key) {
            return Ok(Key::Own(index));
        }
        let seed = self.seed.take().expect("a key is asked for once");
        let key: StringDeserializer<D::Error> = key.into_deserializer();
        match seed.deserialize(key) {
            Ok(key) => Ok(Key::Protocol(key)),
            // Only an unknown key can fail here; ours are known too.
            Err(error) => Err(D::Error::custom(
                self.own
                    .iter()
                    .fold(error.to_string().trim_end().to_owned(), |message, (name, _)| {
                        format!("{message}, `{name}`")
                    }),
            )),
        }
    }
}

/// `host:port`.
struct Address(String);

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let address = String::deserialize(deserializer)?;
        match address.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => Ok(Self(address)),
            _ => Err(D::Error::custom(format_args!("{address:?} is not `host:port`"))),
        }
    }
}

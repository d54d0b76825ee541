//! Where the broker is: `amqp://guest:guest@127.0.0.1:5672/vhost`.

use super::options::Kind;

/// A broker's address and who logs in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// `host:port`.
    pub address: String,
    /// Empty is nobody.
    pub user: String,
    pub password: String,
    /// What follows the address, without its first slash: AMQP's virtual host, STOMP's host.
    pub path: String,
}

struct Scheme {
    kind: Kind,
    name: &'static str,
    secure: &'static str,
    port: u16,
}

const SCHEMES: [Scheme; 4] = [
    Scheme {
        kind: Kind::Amqp,
        name: "amqp",
        secure: "amqps",
        port: 5672,
    },
    Scheme {
        kind: Kind::Mqtt,
        name: "mqtt",
        secure: "mqtts",
        port: 1883,
    },
    Scheme {
        kind: Kind::Stomp,
        name: "stomp",
        secure: "stomps",
        port: 61613,
    },
    Scheme {
        kind: Kind::RocketMq,
        name: "rocketmq",
        secure: "rocketmqs",
        port: 9876,
    },
];

impl Target {
    /// Reads a URL of that protocol.
    ///
    /// # Errors
    /// In words, what is wrong with it.
    pub fn parse(kind: Kind, url: &str) -> Result<Self, String> {
        let scheme = SCHEMES
            .iter()
            .find(|scheme| scheme.kind == kind)
            .expect("every protocol has one");
        let refuse = |why: &str| {
            let (name, port) = (scheme.name, scheme.port);
            Err(format!(
                "--url {url:?} cannot be: {why}; as in {name}://user:password@127.0.0.1:{port}"
            ))
        };
        let Some((given, rest)) = url.split_once("://") else {
            return refuse(&format!("it does not begin with {}://", scheme.name));
        };
        if given.eq_ignore_ascii_case(scheme.secure) {
            return refuse("TLS is not built into the load");
        }
        if !given.eq_ignore_ascii_case(scheme.name) {
            return refuse(&format!("it does not begin with {}://", scheme.name));
        }
        let rest = rest.split(['?', '#']).next().unwrap_or(rest);
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (login, host) = authority.rsplit_once('@').unwrap_or(("", authority));
        let (user, password) = login.split_once(':').unwrap_or((login, ""));
        let (Some(user), Some(password), Some(path)) = (decoded(user), decoded(password), decoded(path)) else {
            return refuse("a `%` is not followed by two hexadecimal digits");
        };
        let bracketed = host.rfind(']').unwrap_or(0);
        let (host, port) = match host[bracketed..].rfind(':') {
            Some(at) => (&host[..bracketed + at], &host[bracketed + at + 1..]),
            None => (host, ""),
        };
        let port = if port.is_empty() {
            scheme.port
        } else {
            match port.parse() {
                Ok(port) => port,
                Err(_) => return refuse("the port is no number from 0 to 65535"),
            }
        };
        if host.is_empty() {
            return refuse("it names no host");
        }
        Ok(Self {
            address: format!("{host}:{port}"),
            user,
            password,
            path,
        })
    }
}

/// `%2F` is `/`.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut parts = text.split('%');
    bytes.extend_from_slice(parts.next()?.as_bytes());
    for part in parts {
        let digits = part.get(..2)?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        bytes.extend_from_slice(&part.as_bytes()[2..]);
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_may_leave_out_what_is_usual() {
        let target = |address: &str, user: &str, password: &str, path: &str| Target {
            address: address.into(),
            user: user.into(),
            password: password.into(),
            path: path.into(),
        };
        for (kind, url, expected) in [
            (Kind::Amqp, "amqp://h", target("h:5672", "", "", "")),
            (Kind::Amqp, "amqp://u:p%40w@h:1/%2Fv", target("h:1", "u", "p@w", "/v")),
            (Kind::Mqtt, "mqtt://[::1]", target("[::1]:1883", "", "", "")),
            (Kind::Stomp, "STOMP://u@[::1]:7/a?b=c", target("[::1]:7", "u", "", "a")),
            (
                Kind::RocketMq,
                "rocketmq://10.0.0.1:9876/",
                target("10.0.0.1:9876", "", "", ""),
            ),
        ] {
            assert_eq!(Target::parse(kind, url), Ok(expected), "{url}");
        }
        for url in [
            "",
            "h:1",
            "mqtt://h",
            "amqp://",
            "amqp://h:port",
            "amqp://u:%zz@h",
            "amqps://h",
        ] {
            assert!(Target::parse(Kind::Amqp, url).is_err(), "{url}");
        }
    }
}

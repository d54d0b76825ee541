use super::*;

/// Loads `text` as a file named `test.toml` with overrides.
fn load(text: &str, overrides: Vec<Override>) -> Result<Loaded, String> {
    static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let count = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let dir = std::env::temp_dir().join(format!("rocketbridge-config-{}-{count}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    let file = dir.join("test.toml");
    fs::write(&file, text).unwrap();
    let sources = Sources {
        file: Some(file),
        overrides,
    };
    let loaded = sources.load().map_err(|error| error.to_string());
    fs::remove_dir_all(&dir).unwrap();
    loaded
}

fn env(name: &str, value: &str) -> Vec<Override> {
    environment([(name.to_owned(), value.to_owned())])
}

#[test]
fn without_a_file_everything_listens_on_loopback() {
    let config = Sources::default().load().unwrap().config;
    assert_eq!(config.amqp.listen, ["127.0.0.1:5672"]);
    assert_eq!(config.mqtt.listen, ["127.0.0.1:1883"]);
    assert_eq!(config.mqtt.websocket_listen, ["127.0.0.1:8083"]);
    assert_eq!(config.stomp.listen, ["127.0.0.1:61613"]);
    assert_eq!(config.stomp.websocket_listen, ["127.0.0.1:15674"]);
    assert_eq!(config.remoting.listen, ["127.0.0.1:10911", "127.0.0.1:10909"]);
    assert_eq!(config.remoting.name_server_listen, ["127.0.0.1:9876"]);
    assert!(config.users[0].loopback_only && config.anonymous.loopback);
}

#[test]
fn every_section_of_a_file_is_read() {
    let text = r#"
        data_dir = "/srv/mq"
        [amqp]
        listen = ["0.0.0.0:5672", "[::1]:0"]
        [mqtt]
        listen = []
        [remoting]
        listen = ["localhost:10911"]
        name_server_listen = []
        [store]
        flush = "async"
        [log]
        level = "info,rocketbridge_amqp=debug"
        format = "json"
        [limits]
        connections_max = 7
        unfinished_max = 8
        [[users]]
        name = "a"
        password = "b"
        [anonymous]
        loopback = false
        [[deduplicate]]
        topic = "orders"
        [[deduplicate]]
        topic = "a.b"
        property = "x-id"
        keys = 5
        time = "1m"
    "#;
    let config = load(text, vec![]).unwrap().config;
    assert_eq!(config.data_dir, Path::new("/srv/mq"));
    let [orders, other] = &config.deduplicate[..] else {
        panic!("{:?}", config.deduplicate)
    };
    assert_eq!(
        (&orders.property[..], orders.keys, orders.time),
        ("UNIQ_KEY", 100_000, None)
    );
    assert_eq!(
        (&other.property[..], other.keys, other.time),
        ("x-id", 5, Some(Duration::from_secs(60)))
    );
    assert_eq!(config.amqp.listen, ["0.0.0.0:5672", "[::1]:0"]);
    assert!(config.mqtt.listen.is_empty() && config.remoting.name_server_listen.is_empty());
    assert_eq!(config.remoting.listen, ["localhost:10911"]);
    assert_eq!(config.store.flush, Flush::Async);
    assert_eq!(config.log.format, LogFormat::Json);
    assert_eq!((config.limits.connections_max, config.limits.unfinished_max), (7, 8));
    assert_eq!((config.users.len(), &config.users[0].name[..]), (1, "a"));
    assert!(!config.users[0].loopback_only && !config.anonymous.loopback);
    assert!(!format!("{config:?}").contains("\"b\""));
}

#[test]
fn an_error_names_line_column_and_the_nearest_key() {
    for (text, place, rest) in [
        ("x = 1\n", ":1:1:", "unknown key `x`"),
        ("\n[amqp]\n lisetn = []\n", ":3:2:", "did you mean `listen`?"),
        (
            "[remoting]\nname_server_listn = []",
            ":2:1:",
            "did you mean `name_server_listen`?",
        ),
        ("[strore]\nflush = 1", ":1:2:", "did you mean `store`?"),
        ("[store]\nflush = \"never\"", ":2:9:", "unknown variant `never`"),
        ("[mqtt]\nlisten = [\"1883\"]", ":2:10:", "is not `host:port`"),
        ("[mqtt]\nlisten = 1883", ":2:10:", "invalid type"),
        ("[log]\nlevel = \"loud,quiet=x\"", ":2:9:", "is no log level"),
        ("a = \n", ":1:5:", ""),
        (
            "[[users]]\nname = \"a\"\npasword = \"b\"",
            ":3:1:",
            "did you mean `password`?",
        ),
    ] {
        let error = load(text, vec![]).map(|_| ()).unwrap_err();
        assert!(
            error.contains("test.toml") && error.contains(place),
            "{text:?}: {error}"
        );
        assert!(error.contains(rest), "{text:?}: {error}");
    }
}

#[test]
fn an_environment_variable_replaces_what_the_file_says() {
    let text = "data_dir = 'a'\n[amqp]\nlisten = []";
    let mut overrides = env("ROCKETBRIDGE_AMQP__LISTEN", "127.0.0.1:1, 127.0.0.1:2");
    overrides.extend(env("ROCKETBRIDGE_DATA_DIR", "12"));
    overrides.extend(env("ROCKETBRIDGE_MQTT__LISTEN", ""));
    overrides.extend(env("ROCKETBRIDGE_LIMITS__CONNECTIONS_MAX", "5"));
    overrides.extend(env("ROCKETBRIDGE_USERS", r#"[{ name = "u", password = "p" }]"#));
    overrides.extend(env("ROCKETBRIDGE_REMOTING__LISTEN", r#"["127.0.0.1:0"]"#));
    let config = load(text, overrides).unwrap().config;
    assert_eq!(config.amqp.listen, ["127.0.0.1:1", "127.0.0.1:2"]);
    assert_eq!(config.data_dir, Path::new("12"));
    assert!(config.mqtt.listen.is_empty());
    assert_eq!(config.limits.connections_max, 5);
    assert_eq!(config.users[0].name, "u");
    assert_eq!(config.remoting.listen, ["127.0.0.1:0"]);
}

#[test]
fn a_wrong_variable_is_named() {
    for (name, value, rest) in [
        ("ROCKETBRIDGE_AMQP__LISTNE", "127.0.0.1:1", "did you mean `listen`?"),
        ("ROCKETBRIDGE_LIMITS__CONNECTIONS_MAX", "many", "invalid type"),
        ("ROCKETBRIDGE_DATA_DIR__X", "1", "`data_dir` is not a table"),
    ] {
        let error = load("data_dir = 'a'", env(name, value)).map(|_| ()).unwrap_err();
        assert!(error.starts_with(name) && error.contains(rest), "{error}");
    }
}

#[test]
fn variables_that_a_cluster_manager_sets_are_no_settings() {
    for name in [
        "ROCKETBRIDGE_SERVICE_HOST",
        "ROCKETBRIDGE_SERVICE_PORT_AMQP",
        "ROCKETBRIDGE_PORT",
        "ROCKETBRIDGE_PORT_5672_TCP_ADDR",
        "ROCKETBRIDGE_CONFIG",
        "OTHER",
    ] {
        assert!(env(name, "x").is_empty(), "{name}");
    }
}

#[test]
fn what_changed_is_named_with_its_section() {
    let old = load("data_dir = 'a'\n[log]\nlevel = 'info'", vec![]).unwrap().set;
    let new = load("[log]\nlevel = 'debug'\n[store]\nflush = 'async'", vec![])
        .unwrap()
        .set;
    assert_eq!(differences(&old, &new), ["data_dir", "log.level", "store.flush"]);
    assert!(differences(&old, &old).is_empty());
}

#[test]
fn delays_and_transactions_have_rocketmq_s_defaults_and_a_year_is_the_most() {
    let config = Sources::default().load().unwrap().config;
    assert_eq!(config.timers.delay_max, Duration::from_secs(3 * 24 * 3600));
    let checks = &config.transactions;
    assert_eq!(
        (checks.check_after, checks.check_interval),
        (Duration::from_secs(6), Duration::from_secs(30))
    );
    assert_eq!(checks.check_max, 15);
    let text = r#"
        [timers]
        delay_max = "365 days"
        [transactions]
        check_after = "6s"
        check_interval = "1m"
        check_max = 3
    "#;
    let config = load(text, Vec::new()).unwrap().config;
    assert_eq!(config.timers.delay_max, Duration::from_secs(365 * 24 * 3600));
    assert_eq!(config.transactions.check_interval, Duration::from_secs(60));
    assert_eq!(config.transactions.check_max, 3);
    let refused = load("[timers]\ndelay_max = \"2 years\"", Vec::new()).unwrap_err();
    assert!(refused.contains("at most a year"), "{refused}");
}

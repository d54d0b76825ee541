//! Environment variables and flags, laid over what the file says one by one, so that an error can name
//! the one that is wrong.

use toml::{Table, Value};

use super::{Config, ConfigError, Loaded, Problem};

/// Begins the names of our environment variables.
const PREFIX: &str = "ROCKETBRIDGE_";

/// Names the configuration file; a flag, not a setting.
pub const FILE_VARIABLE: &str = "ROCKETBRIDGE_CONFIG";

/// One setting from outside the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Override {
    /// The variable or flag, for errors.
    pub origin: String,
    /// The key, level by level.
    pub path: Vec<String>,
    /// A TOML value, a plain string, or strings separated by commas: whichever fits the key.
    pub value: String,
}

/// Settings in environment variables: `ROCKETBRIDGE_DATA_DIR` is `data_dir`, `ROCKETBRIDGE_AMQP__LISTEN` is
/// `amqp.listen`.
pub fn environment(variables: impl IntoIterator<Item = (String, String)>) -> Vec<Override> {
    let mut overrides: Vec<_> = variables
        .into_iter()
        .filter(|(name, _)| name != FILE_VARIABLE && !is_service_link(name))
        .filter_map(|(name, value)| {
            let key = name.strip_prefix(PREFIX)?.to_ascii_lowercase();
            Some(Override {
                path: key.split("__").map(str::to_owned).collect(),
                origin: name,
                value,
            })
        })
        .collect();
    overrides.sort_by(|a, b| a.origin.cmp(&b.origin));
    overrides
}

/// Kubernetes sets these in every container when there is a service called `rocketbridge`.
fn is_service_link(name: &str) -> bool {
    let Some(rest) = name.strip_prefix(PREFIX) else {
        return false;
    };
    rest == "PORT" || rest.starts_with("PORT_") || rest == "SERVICE_HOST" || rest.starts_with("SERVICE_PORT")
}

/// Lays `overrides` over `set`, which makes a configuration by itself.
pub(super) fn apply(mut set: Table, overrides: &[Override]) -> Result<Loaded, ConfigError> {
    for one in overrides {
        set = with(&set, one).map_err(|problem| ConfigError::Override {
            origin: one.origin.clone(),
            problem,
        })?;
    }
    let config = config(&set).map_err(|error| ConfigError::Override {
        origin: "configuration".into(),
        problem: Problem::of(&error),
    })?;
    Ok(Loaded { config, set })
}

fn config(set: &Table) -> Result<Config, toml::de::Error> {
    Value::Table(set.clone()).try_into()
}

fn with(set: &Table, one: &Override) -> Result<Table, Problem> {
    let mut first_problem = None;
    for value in readings(&one.value) {
        let mut changed = set.clone();
        let result = put(&mut changed, &one.path, value).and_then(|()| match config(&changed) {
            Ok(_) => Ok(changed),
            Err(error) => Err(Problem::of(&error)),
        });
        match result {
            Ok(changed) => return Ok(changed),
            Err(problem) => first_problem = first_problem.or(Some(problem)),
        }
    }
    Err(first_problem.expect("a value has at least one reading"))
}

/// What a text may mean, the plainest first.
fn readings(text: &str) -> Vec<Value> {
    let parsed = toml::from_str::<Table>(&format!("v = {text}"))
        .ok()
        .and_then(|mut table| table.remove("v"));
    let list = text
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .map(|part| Value::String(part.to_owned()));
    let list = Value::Array(list.collect());
    parsed
        .into_iter()
        .chain([Value::String(text.to_owned()), list])
        .collect()
}

fn put(table: &mut Table, path: &[String], value: Value) -> Result<(), Problem> {
    let (key, parents) = path.split_last().expect("splitting a string gives at least one part");
    let mut table = table;
    for parent in parents {
        let entry = table
            .entry(parent.clone())
            .or_insert_with(|| Value::Table(Table::new()));
        let Value::Table(inner) = entry else {
            return Err(Problem::Invalid(format!("`{parent}` is not a table")));
        };
        table = inner;
    }
    table.insert(key.clone(), value);
    Ok(())
}

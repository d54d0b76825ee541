//! What an expression says about a message: true, false or unknown, or nothing, when values cannot be compared.
//!
//! The rules are RocketMQ's (Java's, that is): a property is a text. Compared with a number it is read as a number
//! of the constant's own kind, so `'3.5'` compared with `3` is a fault, as is `'x'` compared with any number; a
//! fault anywhere that evaluation comes to means that the message is not wanted.

use std::cmp::Ordering;

use memchr::memmem;

/// How two numbers are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Greater,
    GreaterEqual,
    Less,
    LessEqual,
}

/// Where a text stands in another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fit {
    Contains,
    StartsWith,
    EndsWith,
}

/// A checked expression.
#[derive(Clone, Debug)]
pub(super) enum Expression {
    Null,
    Bool(bool),
    Text(Box<[u8]>),
    Int(i32),
    Long(i64),
    Double(f64),
    Property(u16),
    Negate(Box<Expression>),
    /// A property where true or false is wanted: false, since properties are texts.
    Cast(u16),
    Not(Box<Expression>),
    And(Vec<Expression>),
    Or(Vec<Expression>),
    Equal(Box<Expression>, Box<Expression>),
    IsNull(Box<Expression>),
    Compare(Order, Box<Expression>, Box<Expression>),
    Between {
        negated: bool,
        value: Box<Expression>,
        low: Box<Expression>,
        high: Box<Expression>,
    },
    In {
        slot: u16,
        negated: bool,
        /// Sorted.
        texts: Vec<Box<[u8]>>,
    },
    Fits {
        fit: Fit,
        negated: bool,
        value: Box<Expression>,
        text: Box<[u8]>,
    },
}

/// Two values cannot be compared.
struct Fault;

#[derive(Clone, Copy, Debug)]
enum Value<'a> {
    Null,
    Bool(bool),
    Int(i32),
    Long(i64),
    Double(f64),
    Text(&'a [u8]),
}

impl Expression {
    /// Whether it is true with these values of the properties.
    pub(super) fn holds(&self, values: &[Option<&[u8]>]) -> bool {
        matches!(self.truth(values), Ok(Some(true)))
    }

    /// Whether it may be an operand of a logical operator as it is.
    pub(super) fn is_boolean(&self) -> bool {
        !matches!(
            self,
            Self::Text(_) | Self::Int(_) | Self::Long(_) | Self::Double(_) | Self::Property(_) | Self::Negate(_)
        )
    }

    pub(super) fn is_constant(&self) -> bool {
        matches!(
            self,
            Self::Null | Self::Bool(_) | Self::Text(_) | Self::Int(_) | Self::Long(_) | Self::Double(_)
        )
    }

    /// Whether it may be compared by size.
    pub(super) fn is_ordered(&self) -> bool {
        matches!(
            self,
            Self::Int(_) | Self::Long(_) | Self::Double(_) | Self::Property(_) | Self::Negate(_)
        )
    }

    /// Whether both are constants and this one is the larger.
    pub(super) fn is_above(&self, other: &Self) -> bool {
        self.is_constant()
            && other.is_constant()
            && matches!(
                (self.value(&[]), other.value(&[])),
                (Ok(low), Ok(high)) if matches!(compare(low, high), Ok(Ordering::Greater))
            )
    }

    fn value<'a>(&'a self, values: &[Option<&'a [u8]>]) -> Result<Value<'a>, Fault> {
        Ok(match self {
            Self::Null => Value::Null,
            Self::Text(text) => Value::Text(text),
            Self::Int(number) => Value::Int(*number),
            Self::Long(number) => Value::Long(*number),
            Self::Double(number) => Value::Double(*number),
            Self::Property(slot) => values[usize::from(*slot)].map_or(Value::Null, Value::Text),
            Self::Negate(operand) => match operand.value(values)? {
                Value::Int(number) => Value::Int(number.wrapping_neg()),
                Value::Long(number) => Value::Long(number.wrapping_neg()),
                Value::Double(number) => Value::Double(-number),
                Value::Null | Value::Bool(_) | Value::Text(_) => Value::Null,
            },
            boolean => boolean.truth(values)?.map_or(Value::Null, Value::Bool),
        })
    }

    /// `None` is unknown.
    fn truth(&self, values: &[Option<&[u8]>]) -> Result<Option<bool>, Fault> {
        Ok(match self {
            Self::Bool(truth) => Some(*truth),
            Self::Cast(slot) => values[usize::from(*slot)].map(|_| false),
            Self::Not(operand) => operand.truth(values)?.map(|truth| !truth),
            Self::And(operands) => all(operands, false, values)?,
            Self::Or(operands) => all(operands, true, values)?,
            Self::Equal(left, right) => equal(left.value(values)?, right.value(values)?)?,
            Self::IsNull(operand) => Some(matches!(operand.value(values)?, Value::Null)),
            Self::Compare(order, left, right) => ordered(*order, left.value(values)?, right, values)?,
            Self::Between {
                negated,
                value,
                low,
                high,
            } => {
                let value = value.value(values)?;
                let (first, second) = match negated {
                    false => (Order::GreaterEqual, Order::LessEqual),
                    true => (Order::Less, Order::Greater),
                };
                let first = ordered(first, value, low, values)?;
                if first == Some(*negated) {
                    return Ok(first);
                }
                let second = ordered(second, value, high, values)?;
                match (first, second) {
                    (_, Some(truth)) if truth == *negated => second,
                    (Some(_), Some(_)) => Some(!*negated),
                    _ => None,
                }
            }
            Self::In { slot, negated, texts } => values[usize::from(*slot)].map(|value| {
                let found = texts.binary_search_by(|text| (**text).cmp(value)).is_ok();
                found != *negated
            }),
            Self::Fits {
                fit,
                negated,
                value,
                text,
            } => {
                // Nothing has or has not an empty text in it.
                if text.is_empty() {
                    return Ok(Some(false));
                }
                let Value::Text(value) = value.value(values)? else {
                    return Ok(Some(false));
                };
                let fits = match fit {
                    Fit::Contains => memmem::find(value, text).is_some(),
                    Fit::StartsWith => value.starts_with(text),
                    Fit::EndsWith => value.ends_with(text),
                };
                Some(fits != *negated)
            }
            Self::Null
            | Self::Text(_)
            | Self::Int(_)
            | Self::Long(_)
            | Self::Double(_)
            | Self::Property(_)
            | Self::Negate(_) => None,
        })
    }
}

/// A row of operands of which one that is `decisive` decides; without one, an unknown makes it unknown.
fn all(operands: &[Expression], decisive: bool, values: &[Option<&[u8]>]) -> Result<Option<bool>, Fault> {
    let mut unknown = false;
    for operand in operands {
        match operand.truth(values)? {
            Some(truth) if truth == decisive => return Ok(Some(decisive)),
            Some(_) => {}
            None => unknown = true,
        }
    }
    Ok((!unknown).then_some(!decisive))
}

fn equal(left: Value<'_>, right: Value<'_>) -> Result<Option<bool>, Fault> {
    match (left, right) {
        (Value::Null, Value::Null) => Ok(Some(true)),
        (Value::Null, _) => Ok(None),
        (_, Value::Null) => Ok(Some(false)),
        (left, right) => Ok(Some(compare(left, right)? == Ordering::Equal)),
    }
}

/// The right side is not looked at when the left one is missing.
fn ordered(order: Order, left: Value<'_>, right: &Expression, values: &[Option<&[u8]>]) -> Result<Option<bool>, Fault> {
    if matches!(left, Value::Null) {
        return Ok(None);
    }
    let ordering = match (left, right.value(values)?) {
        (_, Value::Null) => return Ok(None),
        (Value::Text(left), Value::Text(right)) => java_order(double(left)?, double(right)?),
        (left, right) => compare(left, right)?,
    };
    Ok(Some(match order {
        Order::Greater => ordering.is_gt(),
        Order::GreaterEqual => ordering.is_ge(),
        Order::Less => ordering.is_lt(),
        Order::LessEqual => ordering.is_le(),
    }))
}

/// How values that are there compare. Kinds that have nothing to do with each other are unequal, the left one less.
fn compare(left: Value<'_>, right: Value<'_>) -> Result<Ordering, Fault> {
    use Value::{Bool, Double, Int, Long, Null, Text};
    Ok(match (left, right) {
        (Int(left), Int(right)) => left.cmp(&right),
        (Int(left), Long(right)) => i64::from(left).cmp(&right),
        (Long(left), Int(right)) => left.cmp(&i64::from(right)),
        (Long(left), Long(right)) => left.cmp(&right),
        (Int(left), Double(right)) => java_order(f64::from(left), right),
        (Double(left), Int(right)) => java_order(left, f64::from(right)),
        (Long(left), Double(right)) => java_order(left as f64, right),
        (Double(left), Long(right)) => java_order(left, right as f64),
        (Double(left), Double(right)) => java_order(left, right),
        (Int(left), Text(right)) => left.cmp(&int(right)?),
        (Text(left), Int(right)) => int(left)?.cmp(&right),
        (Long(left), Text(right)) => left.cmp(&long(right)?),
        (Text(left), Long(right)) => long(left)?.cmp(&right),
        (Double(left), Text(right)) => java_order(left, double(right)?),
        (Text(left), Double(right)) => java_order(double(left)?, right),
        (Text(left), Text(right)) => left.cmp(right),
        (Bool(left), Bool(right)) => left.cmp(&right),
        (Text(left), Bool(right)) => left.eq_ignore_ascii_case(b"true").cmp(&right),
        (Bool(_), Text(_)) => return Err(Fault),
        (Bool(_), _) | (_, Bool(_)) | (Null, _) | (_, Null) => Ordering::Less,
    })
}

/// Java's order of doubles: -0.0 is below 0.0, and what is no number above all others and equal to itself.
fn java_order(left: f64, right: f64) -> Ordering {
    let clear = |number: f64| if number.is_nan() { f64::NAN.abs() } else { number };
    clear(left).total_cmp(&clear(right))
}

fn int(text: &[u8]) -> Result<i32, Fault> {
    std::str::from_utf8(text)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or(Fault)
}

fn long(text: &[u8]) -> Result<i64, Fault> {
    std::str::from_utf8(text)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or(Fault)
}

/// A floating-point number as Java's `Double.valueOf` reads it, but for hexadecimal ones.
fn double(text: &[u8]) -> Result<f64, Fault> {
    let is_blank = |byte: &u8| *byte <= b' ';
    let start = text.iter().position(|byte| !is_blank(byte)).ok_or(Fault)?;
    let end = text.iter().rposition(|byte| !is_blank(byte)).ok_or(Fault)?;
    let text = std::str::from_utf8(&text[start..=end]).map_err(|_| Fault)?;
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    match unsigned {
        "NaN" => return Ok(f64::NAN),
        "Infinity" if text.starts_with('-') => return Ok(f64::NEG_INFINITY),
        "Infinity" => return Ok(f64::INFINITY),
        _ if !unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.') => return Err(Fault),
        _ => {}
    }
    let number = text.strip_suffix(['f', 'F', 'd', 'D']).unwrap_or(text);
    number.parse().map_err(|_| Fault)
}

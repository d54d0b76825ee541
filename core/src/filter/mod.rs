//! Filters over a message's properties, in RocketMQ's SQL92 dialect.
//!
//! ```text
//! or         = and { OR and }
//! and        = equality { AND equality }
//! equality   = comparison { ( = | <> ) comparison | IS [NOT] NULL }
//! comparison = unary { ( > | >= | < | <= ) unary
//!                    | [NOT] BETWEEN unary AND unary
//!                    | [NOT] IN ( text { , text } )
//!                    | [NOT] ( CONTAINS | STARTSWITH | ENDSWITH ) text }
//! unary      = { + | - | NOT } primary
//! primary    = text | number | TRUE | FALSE | NULL | property | ( or )
//! ```
//! Keywords in any case; a text stands in `'`, doubled inside; a property is `[A-Za-z_$][A-Za-z0-9_$]*`;
//! `/* */` and `--` up to the end of the line are comments. There is no LIKE and no arithmetic. Note that NOT binds
//! tighter than a comparison: `NOT a = 1` compares `NOT a` with 1, as in RocketMQ.
//!
//! [`lexer`] makes tokens, [`parser`] the tree and checks what RocketMQ checks when it compiles, [`evaluate`]
//! knows how values meet. Nothing here panics or recurses deeper than [`DEPTH_MAX`].

mod evaluate;
mod lexer;
mod parser;

use std::fmt;

use crate::message::Message;
use crate::properties;
use evaluate::Expression;

/// Longest expression, bytes.
pub const TEXT_MAX: usize = 4096;

/// Deepest nesting of parentheses, signs and operators that apply to results of others.
pub const DEPTH_MAX: usize = 32;

/// Properties whose values are looked up without taking memory.
const SLOTS_INLINE: usize = 16;

/// Why an expression cannot be compiled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("character {position}: {message}")]
pub struct CompileError {
    /// The character, counted from 1, where the part begins that is wrong.
    pub position: usize,
    /// What is wrong with it.
    pub message: String,
}

/// What identifiers in an expression mean.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Names {
    /// Native properties.
    #[default]
    Native,
    /// Native properties, and JMS's header names (`JMSType`, `JMSPriority`, ...) for the attributes that hold them.
    Jms,
}

/// A compiled expression. Two are equal when their texts are.
#[derive(Clone)]
pub struct Sql {
    text: Box<str>,
    names: Names,
    root: Expression,
    /// Property names in order, each with the slot of its value.
    lookup: Vec<(Box<[u8]>, u16)>,
    /// Parts that look at values: what one evaluation costs.
    parts: usize,
}

impl Sql {
    /// Compiles an expression.
    ///
    /// # Errors
    /// When it is too long, too deep, not in the grammar, or compares what cannot be compared.
    pub fn compile(text: &str, names: Names) -> Result<Self, CompileError> {
        if text.len() > TEXT_MAX {
            return Err(CompileError {
                position: 1,
                message: format!("the expression is longer than {TEXT_MAX} bytes"),
            });
        }
        let parsed = parser::parse(text, names).map_err(|error| CompileError {
            position: text.get(..error.at).map_or(1, |before| before.chars().count() + 1),
            message: error.message,
        })?;
        Ok(Self {
            text: text.into(),
            names,
            root: parsed.root,
            lookup: parsed.lookup,
            parts: parsed.parts,
        })
    }

    /// The expression as it was given.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether a message with these properties is wanted: false also where the answer is unknown, or where values
    /// cannot be compared. Of properties of one name the last counts.
    pub fn matches<'a>(&self, properties: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> bool {
        let count = self.lookup.len();
        let mut inline = [None; SLOTS_INLINE];
        let mut large = Vec::new();
        let values = if count <= SLOTS_INLINE {
            &mut inline[..count]
        } else {
            large.resize(count, None);
            &mut large[..]
        };
        for (name, value) in properties {
            if let Ok(at) = self.lookup.binary_search_by(|(known, _)| (**known).cmp(name)) {
                values[usize::from(self.lookup[at].1)] = Some(value);
            }
        }
        self.root.holds(values)
    }

    /// Whether the message is wanted, by its properties as native consumers see them.
    pub fn matches_message(&self, message: &Message) -> bool {
        self.matches(properties::pairs(message.native_properties()))
    }

    /// Bytes that an evaluation on properties of that length looks at, at most.
    pub(crate) fn cost(&self, properties: usize) -> usize {
        (self.parts + 1).saturating_mul(properties + 64)
    }
}

impl PartialEq for Sql {
    fn eq(&self, other: &Self) -> bool {
        (self.names, &self.text) == (other.names, &other.text)
    }
}

impl Eq for Sql {}

impl fmt::Debug for Sql {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Sql").field(&self.text).finish()
    }
}

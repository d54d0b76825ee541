//! Tokens to a checked tree, by recursive descent; each level of the grammar is one function.

use std::collections::BTreeMap;

use super::evaluate::{Expression, Fit, Order};
use super::lexer::{Keyword, Lexer, Token};
use super::{DEPTH_MAX, Names};

/// What is wrong, and at which byte.
#[derive(Debug)]
pub(super) struct ParseError {
    pub at: usize,
    pub message: String,
}

/// A compiled expression.
pub(super) struct Parsed {
    pub root: Expression,
    pub lookup: Vec<(Box<[u8]>, u16)>,
    pub parts: usize,
}

/// Names of JMS's headers and of the native properties that hold the same.
const JMS_NAMES: [(&str, &str); 9] = [
    ("JMSType", "type"),
    ("JMSCorrelationID", "correlation-id"),
    ("JMSMessageID", "message-id"),
    ("JMSReplyTo", "reply-to"),
    ("JMSPriority", "priority"),
    ("JMSTimestamp", "timestamp"),
    ("JMSXGroupID", "__SHARDINGKEY"),
    ("JMSXUserID", "user-id"),
    ("JMSXAppID", "app-id"),
];

pub(super) fn parse(text: &str, names: Names) -> Result<Parsed, ParseError> {
    let mut lexer = Lexer::new(text);
    let (token, at) = lexer.next()?;
    let mut parser = Parser {
        lexer,
        token,
        at,
        nesting: 0,
        names,
        slots: BTreeMap::new(),
        parts: 0,
    };
    let root = parser.or()?;
    // RocketMQ reads no further than it understands and ignores the rest, which hides mistakes. Only a comment
    // that no line end follows may stand there.
    let is_comment = text[parser.at..].starts_with("--");
    if parser.token != Token::End && !is_comment {
        return Err(parser.error("the expression should end here"));
    }
    let root = root.into_boolean()?;
    let lookup = parser.slots.into_iter();
    Ok(Parsed {
        root,
        lookup: lookup.map(|(name, slot)| (name.as_bytes().into(), slot)).collect(),
        parts: parser.parts,
    })
}

struct Parser<'a> {
    lexer: Lexer<'a>,
    token: Token<'a>,
    /// Where the token begins.
    at: usize,
    /// Parentheses and signs that are open.
    nesting: usize,
    names: Names,
    slots: BTreeMap<&'a str, u16>,
    parts: usize,
}

/// A part of the tree, where it begins and how deep it is.
struct Part {
    expression: Expression,
    at: usize,
    depth: usize,
}

impl Part {
    fn error(&self, message: &str) -> ParseError {
        ParseError {
            at: self.at,
            message: message.to_owned(),
        }
    }

    /// As an operand of a logical operator.
    fn into_boolean(self) -> Result<Expression, ParseError> {
        match self.expression {
            Expression::Property(slot) => Ok(Expression::Cast(slot)),
            expression if expression.is_boolean() => Ok(expression),
            _ => Err(self.error("this is neither true nor false")),
        }
    }

    fn check_ordered(&self) -> Result<(), ParseError> {
        if self.expression.is_ordered() {
            return Ok(());
        }
        Err(self.error("only numbers and properties can be compared by size"))
    }

    fn check_equatable(&self) -> Result<(), ParseError> {
        if matches!(self.expression, Expression::Null) {
            return Err(self.error("NULL equals nothing, use IS NULL"));
        }
        Ok(())
    }
}

impl<'a> Parser<'a> {
    fn error(&self, message: &str) -> ParseError {
        let message = match self.token {
            Token::End => format!("the expression ends too early: {message}"),
            _ => message.to_owned(),
        };
        ParseError { at: self.at, message }
    }

    fn advance(&mut self) -> Result<(), ParseError> {
        (self.token, self.at) = self.lexer.next()?;
        Ok(())
    }

    fn peek(&self) -> Result<Token<'a>, ParseError> {
        let mut ahead = self.lexer;
        Ok(ahead.next()?.0)
    }

    fn take(&mut self, token: Token<'_>) -> Result<bool, ParseError> {
        let is_it = self.token == token;
        if is_it {
            self.advance()?;
        }
        Ok(is_it)
    }

    fn expect(&mut self, token: Token<'_>, what: &str) -> Result<(), ParseError> {
        if self.take(token)? {
            return Ok(());
        }
        Err(self.error(&format!("{what} is expected here")))
    }

    /// A part made of others.
    fn part(&mut self, expression: Expression, at: usize, deepest: usize) -> Result<Part, ParseError> {
        self.parts += 1;
        let depth = deepest + 1;
        if depth > DEPTH_MAX {
            return Err(too_deep(at));
        }
        Ok(Part { expression, at, depth })
    }

    fn or(&mut self) -> Result<Part, ParseError> {
        self.logical(Keyword::Or, Self::and, Expression::Or)
    }

    fn and(&mut self) -> Result<Part, ParseError> {
        self.logical(Keyword::And, Self::equality, Expression::And)
    }

    /// Operands of one logical operator side by side: a long row of them is no deep tree.
    fn logical(
        &mut self,
        operator: Keyword,
        operand: fn(&mut Self) -> Result<Part, ParseError>,
        make: fn(Vec<Expression>) -> Expression,
    ) -> Result<Part, ParseError> {
        let first = operand(self)?;
        if self.token != Token::Word(operator) {
            return Ok(first);
        }
        let (at, mut deepest) = (first.at, first.depth);
        let mut operands = vec![first.into_boolean()?];
        while self.take(Token::Word(operator))? {
            let next = operand(self)?;
            deepest = deepest.max(next.depth);
            operands.push(next.into_boolean()?);
        }
        self.part(make(operands), at, deepest)
    }

    fn equality(&mut self) -> Result<Part, ParseError> {
        let mut left = self.comparison()?;
        loop {
            let negated = match self.token {
                Token::Equal => false,
                Token::NotEqual => true,
                Token::Word(Keyword::Is) => {
                    left = self.is_null(left)?;
                    continue;
                }
                _ => return Ok(left),
            };
            self.advance()?;
            let right = self.comparison()?;
            left.check_equatable()?;
            right.check_equatable()?;
            if matches!(left.expression, Expression::Bool(_))
                && right.expression.is_constant()
                && !right.expression.is_boolean()
            {
                return Err(right.error("TRUE and FALSE cannot be compared with this"));
            }
            let deepest = left.depth.max(right.depth);
            let equal = Expression::Equal(Box::new(left.expression), Box::new(right.expression));
            left = self.part(not_if(negated, equal), left.at, deepest)?;
        }
    }

    fn is_null(&mut self, left: Part) -> Result<Part, ParseError> {
        self.advance()?;
        let negated = self.take(Token::Word(Keyword::Not))?;
        self.expect(Token::Word(Keyword::Null), "NULL")?;
        let is_null = Expression::IsNull(Box::new(left.expression));
        self.part(not_if(negated, is_null), left.at, left.depth)
    }

    fn comparison(&mut self) -> Result<Part, ParseError> {
        let mut left = self.unary()?;
        loop {
            let order = match self.token {
                Token::Greater => Some(Order::Greater),
                Token::GreaterEqual => Some(Order::GreaterEqual),
                Token::Less => Some(Order::Less),
                Token::LessEqual => Some(Order::LessEqual),
                _ => None,
            };
            if let Some(order) = order {
                self.advance()?;
                let right = self.unary()?;
                left.check_ordered()?;
                right.check_ordered()?;
                let deepest = left.depth.max(right.depth);
                let compare = Expression::Compare(order, Box::new(left.expression), Box::new(right.expression));
                left = self.part(compare, left.at, deepest)?;
                continue;
            }
            let negated = self.token == Token::Word(Keyword::Not);
            let operator = if negated { self.peek()? } else { self.token };
            let Token::Word(operator) = operator else {
                return Ok(left);
            };
            let fit = match operator {
                Keyword::Contains => Some(Fit::Contains),
                Keyword::StartsWith => Some(Fit::StartsWith),
                Keyword::EndsWith => Some(Fit::EndsWith),
                Keyword::Between | Keyword::In => None,
                _ => return Ok(left),
            };
            if negated {
                self.advance()?;
            }
            self.advance()?;
            left = match (fit, operator) {
                (Some(fit), _) => {
                    let text = self.text()?;
                    let expression = Expression::Fits {
                        fit,
                        negated,
                        value: Box::new(left.expression),
                        text,
                    };
                    self.part(expression, left.at, left.depth)?
                }
                (None, Keyword::Between) => self.between(left, negated)?,
                (None, _) => self.one_of(left, negated)?,
            };
        }
    }

    fn between(&mut self, value: Part, negated: bool) -> Result<Part, ParseError> {
        let low = self.unary()?;
        self.expect(Token::Word(Keyword::And), "AND")?;
        let high = self.unary()?;
        for part in [&value, &low, &high] {
            part.check_ordered()?;
        }
        if !negated && low.expression.is_above(&high.expression) {
            return Err(low.error("BETWEEN wants the smaller number first"));
        }
        let deepest = value.depth.max(low.depth).max(high.depth);
        let between = Expression::Between {
            negated,
            value: Box::new(value.expression),
            low: Box::new(low.expression),
            high: Box::new(high.expression),
        };
        self.part(between, value.at, deepest)
    }

    fn one_of(&mut self, property: Part, negated: bool) -> Result<Part, ParseError> {
        let Expression::Property(slot) = property.expression else {
            return Err(property.error("IN wants a property before it"));
        };
        self.expect(Token::Open, "(")?;
        let mut texts = vec![self.text()?];
        while self.take(Token::Comma)? {
            texts.push(self.text()?);
        }
        self.expect(Token::Close, ")")?;
        texts.sort_unstable();
        texts.dedup();
        self.part(Expression::In { slot, negated, texts }, property.at, property.depth)
    }

    fn text(&mut self) -> Result<Box<[u8]>, ParseError> {
        let Token::Text(quoted) = self.token else {
            return Err(self.error("a text in ' is expected here"));
        };
        self.advance()?;
        Ok(unquoted(quoted))
    }

    fn unary(&mut self) -> Result<Part, ParseError> {
        let at = self.at;
        match self.token {
            Token::Plus => {
                self.advance()?;
                self.nested(at, Self::unary)
            }
            Token::Minus => {
                self.advance()?;
                let operand = self.nested(at, Self::unary)?;
                self.part(Expression::Negate(Box::new(operand.expression)), at, operand.depth)
            }
            Token::Word(Keyword::Not) => {
                self.advance()?;
                let operand = self.nested(at, Self::unary)?;
                let depth = operand.depth;
                self.part(Expression::Not(Box::new(operand.into_boolean()?)), at, depth)
            }
            _ => self.primary(),
        }
    }

    fn primary(&mut self) -> Result<Part, ParseError> {
        let at = self.at;
        let expression = match self.token {
            Token::Text(quoted) => Expression::Text(unquoted(quoted)),
            Token::Whole(digits) => whole(digits).ok_or_else(|| self.error("the number has more than 64 bits"))?,
            Token::Real(digits) => real(digits).ok_or_else(|| self.error("the number is too large"))?,
            Token::Word(Keyword::True) => Expression::Bool(true),
            Token::Word(Keyword::False) => Expression::Bool(false),
            Token::Word(Keyword::Null) => Expression::Null,
            Token::Name(name) => Expression::Property(self.slot(name)),
            Token::Open => {
                self.advance()?;
                let inner = self.nested(at, Self::or)?;
                self.expect(Token::Close, ")")?;
                return Ok(inner);
            }
            _ => return Err(self.error("a property, a number, a text or ( is expected here")),
        };
        self.advance()?;
        Ok(Part {
            expression,
            at,
            depth: 1,
        })
    }

    /// One level further in.
    fn nested(&mut self, at: usize, inner: fn(&mut Self) -> Result<Part, ParseError>) -> Result<Part, ParseError> {
        if self.nesting == DEPTH_MAX {
            return Err(too_deep(at));
        }
        self.nesting += 1;
        let part = inner(self)?;
        self.nesting -= 1;
        Ok(part)
    }

    fn slot(&mut self, name: &'a str) -> u16 {
        let jms = JMS_NAMES.iter().find(|(jms, _)| *jms == name);
        let name = match (self.names, jms) {
            (Names::Jms, Some((_, native))) => native,
            _ => name,
        };
        // There are fewer names than bytes in the text.
        let next = self.slots.len() as u16;
        *self.slots.entry(name).or_insert(next)
    }
}

fn too_deep(at: usize) -> ParseError {
    ParseError {
        at,
        message: format!("nested deeper than {DEPTH_MAX} levels"),
    }
}

fn not_if(negated: bool, expression: Expression) -> Expression {
    if negated {
        return Expression::Not(Box::new(expression));
    }
    expression
}

fn unquoted(quoted: &str) -> Box<[u8]> {
    quoted.replace("''", "'").into_bytes().into()
}

fn whole(digits: &str) -> Option<Expression> {
    let number: i64 = digits.parse().ok()?;
    Some(i32::try_from(number).map_or(Expression::Long(number), Expression::Int))
}

fn real(digits: &str) -> Option<Expression> {
    let number: f64 = digits.parse().ok()?;
    number.is_finite().then_some(Expression::Double(number))
}

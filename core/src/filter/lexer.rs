//! Text to tokens, one at a time: what the parser never looks at need not be tokens.

use nom::branch::alt;
use nom::bytes::complete::{tag, take_till, take_while, take_while_m_n};
use nom::character::complete::{digit1, one_of};
use nom::combinator::{map, opt, recognize, value};
use nom::{IResult, Parser};

use super::parser::ParseError;

/// A token; texts and names are pieces of the expression.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token<'a> {
    End,
    Word(Keyword),
    Name(&'a str),
    /// Without the outer quotes, inner ones still doubled.
    Text(&'a str),
    /// Digits without the `L` behind them.
    Whole(&'a str),
    Real(&'a str),
    Equal,
    NotEqual,
    Greater,
    GreaterEqual,
    Less,
    LessEqual,
    Plus,
    Minus,
    Open,
    Close,
    Comma,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keyword {
    Not,
    And,
    Or,
    Between,
    In,
    True,
    False,
    Null,
    Is,
    Contains,
    StartsWith,
    EndsWith,
}

const KEYWORDS: [(&str, Keyword); 12] = [
    ("NOT", Keyword::Not),
    ("AND", Keyword::And),
    ("OR", Keyword::Or),
    ("BETWEEN", Keyword::Between),
    ("IN", Keyword::In),
    ("TRUE", Keyword::True),
    ("FALSE", Keyword::False),
    ("NULL", Keyword::Null),
    ("IS", Keyword::Is),
    ("CONTAINS", Keyword::Contains),
    ("STARTSWITH", Keyword::StartsWith),
    ("ENDSWITH", Keyword::EndsWith),
];

/// Where the reading of an expression stands. Cheap to copy, for looking ahead.
#[derive(Clone, Copy)]
pub(super) struct Lexer<'a> {
    text: &'a str,
    at: usize,
    /// Behind the last end of a line: a `--` from here on begins no comment.
    lines_end: usize,
}

impl<'a> Lexer<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self {
            text,
            at: 0,
            lines_end: text.rfind(['\n', '\r']).map_or(0, |at| at + 1),
        }
    }

    /// The next token and where it begins.
    pub(super) fn next(&mut self) -> Result<(Token<'a>, usize), ParseError> {
        self.skip();
        let (start, rest) = (self.at, &self.text[self.at..]);
        if rest.is_empty() {
            return Ok((Token::End, start));
        }
        match token(rest) {
            Ok((behind, token)) => {
                self.at = self.text.len() - behind.len();
                Ok((token, start))
            }
            Err(_) => Err(ParseError {
                at: start,
                message: match rest.chars().next() {
                    Some('\'') => "the text has no closing '".to_owned(),
                    Some(other) => format!("{other:?} is not expected here"),
                    None => "the expression ends too early".to_owned(),
                },
            }),
        }
    }

    /// White space and comments.
    fn skip(&mut self) {
        loop {
            let rest = &self.text[self.at..];
            let behind = match rest.as_bytes() {
                [b' ' | b'\t' | b'\n' | b'\r' | 0x0C, ..] => blank(rest),
                // Without an end of line it is two signs, as in RocketMQ.
                [b'-', b'-', ..] if self.at < self.lines_end => line_comment(rest),
                [b'/', b'*', ..] => block_comment(rest),
                _ => return,
            };
            let Ok((behind, _)) = behind else { return };
            self.at = self.text.len() - behind.len();
        }
    }
}

fn blank(input: &str) -> IResult<&str, &str> {
    take_while(|c| matches!(c, ' ' | '\t' | '\n' | '\r' | '\x0C')).parse(input)
}

fn line_comment(input: &str) -> IResult<&str, &str> {
    recognize((tag("--"), take_till(|c| c == '\n' || c == '\r'))).parse(input)
}

fn block_comment(input: &str) -> IResult<&str, &str> {
    recognize((tag("/*"), nom::bytes::complete::take_until("*/"), tag("*/"))).parse(input)
}

fn token(input: &str) -> IResult<&str, Token<'_>> {
    alt((
        map(text, Token::Text),
        map(real, Token::Real),
        map(whole, Token::Whole),
        map(name, |word| {
            let keyword = KEYWORDS.iter().find(|(known, _)| known.eq_ignore_ascii_case(word));
            keyword.map_or(Token::Name(word), |(_, keyword)| Token::Word(*keyword))
        }),
        value(Token::NotEqual, tag("<>")),
        value(Token::LessEqual, tag("<=")),
        value(Token::GreaterEqual, tag(">=")),
        value(Token::Less, tag("<")),
        value(Token::Greater, tag(">")),
        value(Token::Equal, tag("=")),
        value(Token::Plus, tag("+")),
        value(Token::Minus, tag("-")),
        value(Token::Open, tag("(")),
        value(Token::Close, tag(")")),
        value(Token::Comma, tag(",")),
    ))
    .parse(input)
}

fn name(input: &str) -> IResult<&str, &str> {
    recognize((
        take_while_m_n(1, 1, |c: char| c.is_ascii_alphabetic() || c == '_' || c == '$'),
        take_while(|c: char| c.is_ascii_alphanumeric() || c == '_' || c == '$'),
    ))
    .parse(input)
}

fn text(input: &str) -> IResult<&str, &str> {
    let (inside, _) = tag("'").parse(input)?;
    let mut at = inside;
    loop {
        let (quote, _) = take_till(|c| c == '\'').parse(at)?;
        let (behind, _) = tag("'").parse(quote)?;
        match behind.strip_prefix('\'') {
            Some(more) => at = more,
            None => return Ok((behind, &inside[..inside.len() - quote.len()])),
        }
    }
}

fn real(input: &str) -> IResult<&str, &str> {
    alt((
        recognize((digit1, tag("."), digits, opt(exponent))),
        recognize((tag("."), digit1, opt(exponent))),
        recognize((digit1, exponent)),
    ))
    .parse(input)
}

/// Maybe no digit. Not nom's `digit0`: in 8.0.0 what it leaves at the end of the input points to its beginning, and
/// `recognize` measures from there.
fn digits(input: &str) -> IResult<&str, &str> {
    take_while(|c: char| c.is_ascii_digit()).parse(input)
}

fn exponent(input: &str) -> IResult<&str, &str> {
    recognize((one_of("eE"), opt(one_of("+-")), digit1)).parse(input)
}

fn whole(input: &str) -> IResult<&str, &str> {
    let number = alt((tag("0"), recognize((one_of("123456789"), digits))));
    let (behind, (number, _)) = (number, opt(one_of("lL"))).parse(input)?;
    Ok((behind, number))
}

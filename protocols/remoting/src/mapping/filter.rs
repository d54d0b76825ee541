//! Filter expressions: tags to hashes, SQL92 to a compiled filter.

use std::sync::Arc;

use rocketbridge_core::filter::{Names, Sql};
use rocketbridge_core::request::Filter;

use crate::response_code::{Refused, ResponseCode};

/// The type of an expression over properties.
const SQL92: &str = "SQL92";

/// Java's `String.hashCode`: over UTF-16 units.
pub fn java_hash(text: &str) -> i32 {
    text.encode_utf16()
        .fold(0_i32, |hash, unit| hash.wrapping_mul(31).wrapping_add(i32::from(unit)))
}

/// The filter of an expression of that type. Tags: `a || b`, or `*` or nothing for all.
///
/// # Errors
/// 23 when the expression is none of its type, or nothing is known of the type.
pub fn filter(expression: &str, expression_type: &str) -> Result<Filter, Refused> {
    if expression_type == SQL92 {
        return sql(expression).map(Filter::Sql);
    }
    if !is_tag_type(expression_type) {
        return Err(not_by(expression_type));
    }
    if expression.is_empty() || expression == "*" {
        return Ok(Filter::All);
    }
    // Java's split drops empty parts at the end: of separators alone nothing is left.
    if expression.split("||").all(str::is_empty) {
        return Err(Refused::new(
            ResponseCode::SubscriptionParseFailed,
            "parse the consumer's subscription failed",
        ));
    }
    let tags = expression.split("||").map(str::trim).filter(|tag| !tag.is_empty());
    Ok(of_hashes(tags.map(java_hash).collect()))
}

/// As [`filter`], for a client that sends the same expression again and again: `last` is the last one compiled.
///
/// # Errors
/// As [`filter`].
pub fn filter_again(expression: &str, kind: &str, last: &mut Option<Arc<Sql>>) -> Result<Filter, Refused> {
    if kind != SQL92 {
        return filter(expression, kind);
    }
    let known = last.as_ref().filter(|sql| sql.text() == expression);
    let sql = match known {
        Some(sql) => Arc::clone(sql),
        None => sql(expression)?,
    };
    *last = Some(Arc::clone(&sql));
    Ok(Filter::Sql(sql))
}

fn sql(expression: &str) -> Result<Arc<Sql>, Refused> {
    Sql::compile(expression, Names::Native).map(Arc::new).map_err(|error| {
        let remark = format!("Invalid MessageSelector. {error}");
        Refused::new(ResponseCode::SubscriptionParseFailed, remark)
    })
}

/// Whether an expression of that type is about tags; saying nothing means so.
pub fn is_tag_type(expression_type: &str) -> bool {
    expression_type.is_empty() || expression_type == "TAG"
}

/// A filter of these hashes.
pub(crate) fn of_hashes(mut hashes: Vec<i32>) -> Filter {
    hashes.sort_unstable();
    hashes.dedup();
    Filter::Tags(hashes)
}

fn not_by(expression_type: &str) -> Refused {
    let name: String = expression_type.chars().take(32).collect();
    Refused::not_supported(
        ResponseCode::SubscriptionParseFailed,
        &format!("filtering messages by {name}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_java_s() {
        // Computed by Java's "...".hashCode().
        for (text, hash) in [
            ("", 0),
            ("a", 97),
            ("TagA", 2_598_919),
            ("tagA", 3_552_231),
            ("Aa", 2112),
            ("BB", 2112),
            ("é", 233),
            ("😀", 1_772_899),
            ("polygenelubricants", i32::MIN),
        ] {
            assert_eq!(java_hash(text), hash, "{text}");
        }
    }

    #[test]
    fn an_expression_is_a_set_of_tags() {
        assert_eq!(filter("", "TAG"), Ok(Filter::All));
        assert_eq!(filter("*", ""), Ok(Filter::All));
        assert_eq!(filter("a", "TAG"), Ok(Filter::Tags(vec![97])));
        assert_eq!(filter(" b || a||||b", "TAG"), Ok(Filter::Tags(vec![97, 98])));
        // A blank part names no tag: nothing matches, as in RocketMQ.
        assert_eq!(filter(" ", "TAG"), Ok(Filter::Tags(vec![])));
    }

    #[test]
    fn an_expression_is_compiled_once_as_long_as_it_stays() {
        let mut last = None;
        let first = filter_again("a > 1", "SQL92", &mut last).unwrap();
        let again = filter_again("a > 1", "SQL92", &mut last).unwrap();
        let (Filter::Sql(first), Filter::Sql(again)) = (first, again) else {
            panic!("filters by expression")
        };
        assert!(Arc::ptr_eq(&first, &again));
        let other = filter_again("a > 2", "SQL92", &mut last).unwrap();
        assert_ne!(other, Filter::Sql(first));
        assert_eq!(filter_again("a", "TAG", &mut last), Ok(Filter::Tags(vec![97])));
    }

    #[test]
    fn what_is_no_expression_of_its_type_is_refused() {
        let code = |expression, kind| filter(expression, kind).unwrap_err().code;
        assert_eq!(code("||", "TAG"), ResponseCode::SubscriptionParseFailed);
        assert_eq!(code("a >", "SQL92"), ResponseCode::SubscriptionParseFailed);
        assert_eq!(code("a > 1", "sql92"), ResponseCode::SubscriptionParseFailed);
        let refused = filter("a > 1 AND", "SQL92").unwrap_err();
        assert!(
            refused.remark.starts_with("Invalid MessageSelector. character 10: "),
            "{}",
            refused.remark
        );
    }
}

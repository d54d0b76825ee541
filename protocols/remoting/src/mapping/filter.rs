//! Tag expressions to hashes.

use rocketbridge_core::request::Filter;

use crate::response_code::{Refused, ResponseCode};

/// Java's `String.hashCode`: over UTF-16 units.
pub fn java_hash(text: &str) -> i32 {
    text.encode_utf16()
        .fold(0_i32, |hash, unit| hash.wrapping_mul(31).wrapping_add(i32::from(unit)))
}

/// The filter of an expression of that type: `a || b`, or `*` or nothing for all.
///
/// # Errors
/// 23 when it is no tag expression, or has no part at all.
pub fn filter(expression: &str, expression_type: &str) -> Result<Filter, Refused> {
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

/// The answer to a filter that is not about tags.
pub(crate) fn not_by(expression_type: &str) -> Refused {
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
    fn what_is_no_tag_expression_is_refused() {
        let code = |expression, kind| filter(expression, kind).unwrap_err().code;
        assert_eq!(code("||", "TAG"), ResponseCode::SubscriptionParseFailed);
        assert_eq!(code("a > 1", "SQL92"), ResponseCode::SubscriptionParseFailed);
    }
}

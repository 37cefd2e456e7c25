//! Values written into the text of a statement, for those that travel together in one message: the protocol's
//! other way, which keeps values apart, takes one statement at a time.

use std::fmt::Write;

use sqlx::{AssertSqlSafe, SqlSafeStr, SqlStr};

/// A value. Whatever a caller chose goes as hexadecimal digits, so that nothing in it can end a literal, whatever
/// the server's settings and encoding are. As escapes of a constant where that is possible: a call of a function
/// that decodes digits costs the server some 2 us.
pub(crate) enum Literal<'v> {
    Text(&'v str),
    Bytes(Option<&'v [u8]>),
    Number(Option<i64>),
    Flag(bool),
}

impl Literal<'_> {
    fn write(&self, sql: &mut String) {
        match self {
            Self::Text(value) => text(sql, value),
            Self::Bytes(Some(value)) => bytes(sql, value),
            Self::Number(Some(number)) => write!(sql, "{number}").expect("BUG: text takes text"),
            Self::Bytes(None) | Self::Number(None) => sql.push_str("null"),
            Self::Flag(flag) => sql.push_str(if *flag { "true" } else { "false" }),
        }
    }
}

fn text(sql: &mut String, value: &str) {
    if value.is_ascii() {
        sql.push_str("E'");
        for byte in value.bytes() {
            sql.push_str(r"\x");
            digits(sql, byte);
        }
        sql.push_str("'::pg_catalog.text");
    } else {
        // An escape is a byte in the server's encoding.
        sql.push_str("pg_catalog.convert_from(");
        bytes(sql, value.as_bytes());
        sql.push_str(", 'UTF8')");
    }
}

fn bytes(sql: &mut String, value: &[u8]) {
    sql.push_str(r"E'\\x");
    value.iter().for_each(|byte| digits(sql, *byte));
    sql.push_str("'::pg_catalog.bytea");
}

fn digits(sql: &mut String, byte: u8) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    sql.push(char::from(DIGITS[usize::from(byte >> 4)]));
    sql.push(char::from(DIGITS[usize::from(byte & 15)]));
}

/// A statement with `$1`, `$2` and so on replaced by these values.
pub(crate) fn fill(statement: &str, values: &[Literal<'_>]) -> String {
    let mut sql = String::new();
    let mut parts = statement.split('$');
    sql.push_str(parts.next().unwrap_or_default());
    for part in parts {
        let digits = part.bytes().take_while(u8::is_ascii_digit).count();
        let number: usize =
            part[..digits].parse().expect("BUG: a $ in a statement that is no parameter");
        values[number - 1].write(&mut sql);
        sql.push_str(&part[digits..]);
    }
    sql
}

/// Several statements as one message. All that is in it is ours, or a [`Literal`].
pub(crate) fn message(statements: &[&str]) -> SqlStr {
    AssertSqlSafe(statements.join("; ")).into_sql_str()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_take_the_places_of_their_numbers() {
        let values = [
            Literal::Text("a'\\$2"),
            Literal::Text("é"),
            Literal::Bytes(Some(b"\x00\xff")),
            Literal::Bytes(None),
            Literal::Number(Some(-7)),
            Literal::Number(None),
            Literal::Flag(true),
        ];
        assert_eq!(
            fill("select f($7, $6, $5, $4, $3, $2, $1)", &values),
            concat!(
                r"select f(true, null, -7, null, E'\\x00ff'::pg_catalog.bytea, ",
                r"pg_catalog.convert_from(E'\\xc3a9'::pg_catalog.bytea, 'UTF8'), ",
                r"E'\x61\x27\x5c\x24\x32'::pg_catalog.text)"
            )
        );
    }
}

//! The headers of a message that died: which of them are kept, whether they can be published again, and how they are stored.
//! Stored headers can be read back.

use lapin::types::{AMQPValue, FieldArray, FieldTable, ShortString};

/// Most bytes of the original headers that are kept: a message's headers must fit into one frame (128 KiB), and a letter that
/// cannot be published would come back forever.
const HEADERS_MAX: usize = 64 * 1024;
/// Deepest nesting of tables and arrays that is stored: serde_json reads 127 levels, and each level of AMQP takes two of
/// them.
const DEPTH_MAX: usize = 60;

/// Headers without the broker's own record of dead-lettering, with which a republished message is dropped as a cycle, of
/// deliveries, which differs each time that the message is read, and without `CC` and `BCC`, which would route a message to more queues than ours.
/// <https://www.rabbitmq.com/docs/sender-selected>
#[must_use]
pub fn without_deaths(headers: Option<&FieldTable>) -> FieldTable {
    let mut kept = FieldTable::default();
    for (name, value) in headers.into_iter().flat_map(FieldTable::inner) {
        let of_death = name.as_str() == "x-death"
            || name.as_str().starts_with("x-first-death-")
            || name.as_str().starts_with("x-last-death-")
            || ["CC", "BCC", "x-delivery-count", "x-acquired-count"].contains(&name.as_str());
        if !of_death {
            kept.insert(name.clone(), value.clone());
        }
    }
    kept
}

/// Whether headers leave room in a message's one frame for those that are added.
#[must_use]
pub fn fit_to_publish(headers: &FieldTable) -> bool {
    size_of_table(headers) <= HEADERS_MAX
}

/// How many bytes a table takes in a frame, slightly overestimated.
pub(super) fn size_of_table(table: &FieldTable) -> usize {
    table.inner().iter().map(|(name, value)| name.as_str().len() + 2 + size_of_value(value)).sum::<usize>() + 4
}

fn size_of_value(value: &AMQPValue) -> usize {
    match value {
        AMQPValue::LongString(text) => text.len() + 4,
        AMQPValue::ShortString(text) => text.as_str().len() + 1,
        AMQPValue::ByteArray(bytes) => bytes.len() + 4,
        AMQPValue::FieldArray(values) => 4 + values.as_slice().iter().map(|value| 1 + size_of_value(value)).sum::<usize>(),
        AMQPValue::FieldTable(table) => size_of_table(table),
        _ => 8,
    }
}

/// How many bytes a table takes in memory, about. A value takes one byte on the wire at least, and many here.
#[must_use]
pub fn memory_of(headers: &FieldTable) -> usize {
    let entry = size_of::<(ShortString, AMQPValue)>();
    headers.inner().iter().map(|(name, value)| entry + name.as_str().len() + memory_of_value(value)).sum()
}

/// What a value takes beside itself.
fn memory_of_value(value: &AMQPValue) -> usize {
    match value {
        AMQPValue::FieldTable(table) => memory_of(table),
        AMQPValue::FieldArray(values) => {
            values.as_slice().iter().map(|value| size_of::<AMQPValue>() + memory_of_value(value)).sum()
        }
        value => size_of_value(value),
    }
}

/// Headers as `dead_letter_bodies.headers` stores them: the AMQP table in JSON, each value with its type (a double may lose its
/// last bit). Also returns how many values were dropped because JSON cannot represent them: non-finite numbers, and values
/// nested too deep.
#[must_use]
pub fn headers_to_json(headers: &FieldTable) -> (Vec<u8>, usize) {
    let mut dropped = 0;
    let kept = table_for_json(headers, 0, &mut dropped);
    // It cannot fail: every key is a string, and what JSON cannot represent was dropped.
    (serde_json::to_vec(&kept).unwrap_or_else(|_| b"{}".to_vec()), dropped)
}

/// Reads the headers that [`headers_to_json`] wrote.
///
/// # Errors
/// If the JSON has another form.
pub fn headers_from_json(json: &[u8]) -> Result<FieldTable, serde_json::Error> {
    serde_json::from_slice(json)
}

fn table_for_json(table: &FieldTable, depth: usize, dropped: &mut usize) -> FieldTable {
    let mut kept = FieldTable::default();
    for (name, value) in table.inner() {
        if let Some(value) = value_for_json(value, depth, dropped) {
            kept.insert(name.clone(), value);
        }
    }
    kept
}

fn value_for_json(value: &AMQPValue, depth: usize, dropped: &mut usize) -> Option<AMQPValue> {
    match value {
        AMQPValue::FieldTable(table) if depth < DEPTH_MAX => {
            Some(AMQPValue::FieldTable(table_for_json(table, depth + 1, dropped)))
        }
        AMQPValue::FieldArray(values) if depth < DEPTH_MAX => {
            let kept: Vec<_> = values.as_slice().iter().filter_map(|value| value_for_json(value, depth + 1, dropped)).collect();
            Some(AMQPValue::FieldArray(FieldArray::from(kept)))
        }
        AMQPValue::FieldTable(_) | AMQPValue::FieldArray(_) => {
            *dropped += 1;
            None
        }
        AMQPValue::Float(number) if !number.is_finite() => {
            *dropped += 1;
            None
        }
        AMQPValue::Double(number) if !number.is_finite() => {
            *dropped += 1;
            None
        }
        value => Some(value.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table<const N: usize>(entries: [(&str, AMQPValue); N]) -> FieldTable {
        let mut table = FieldTable::default();
        for (name, value) in entries {
            table.insert(name.into(), value);
        }
        table
    }

    fn nested(levels: usize) -> FieldTable {
        (0..levels).fold(FieldTable::default(), |inner, _| table([("deeper", AMQPValue::FieldTable(inner))]))
    }

    #[test]
    fn the_brokers_record_of_dead_lettering_is_stripped() {
        let text = |text: &str| AMQPValue::LongString(text.into());
        let mine = table([("mine", text("1"))]);
        let mut hostile = mine.clone();
        for name in ["x-death", "CC", "BCC", "x-first-death-queue", "x-last-death-reason", "x-delivery-count", "x-acquired-count"]
        {
            hostile.insert(name.into(), text("q"));
        }
        assert_eq!(without_deaths(Some(&hostile)), mine);
    }

    #[test]
    fn headers_of_every_type_are_read_as_they_were_stored() {
        let all = table([
            ("", AMQPValue::Void),
            ("bool", AMQPValue::Boolean(true)),
            ("least", AMQPValue::LongLongInt(i64::MIN)),
            ("byte", AMQPValue::ShortShortUInt(255)),
            ("half", AMQPValue::Double(0.1)),
            ("float", AMQPValue::Float(f32::MIN_POSITIVE)),
            ("decimal", AMQPValue::DecimalValue(lapin::types::DecimalValue { scale: 2, value: 314 })),
            ("text \0 \"ă\"", AMQPValue::LongString(b"no \xff text \0".to_vec().into())),
            ("bytes", AMQPValue::ByteArray(vec![0, 255].into())),
            ("list", AMQPValue::FieldArray(vec![AMQPValue::Timestamp(u64::MAX), AMQPValue::LongInt(-7)].into())),
            ("table", AMQPValue::FieldTable(nested(50))),
        ]);
        let (json, dropped) = headers_to_json(&all);
        assert_eq!((headers_from_json(&json).unwrap(), dropped), (all, 0));
    }

    #[test]
    fn what_json_cannot_hold_is_counted_and_the_rest_is_kept() {
        let mut hostile = nested(200);
        hostile.insert("nan".into(), AMQPValue::Double(f64::NAN));
        hostile.insert("endless".into(), AMQPValue::Float(f32::INFINITY));
        hostile.insert("sound".into(), AMQPValue::LongInt(7));
        let (json, dropped) = headers_to_json(&hostile);
        let read = headers_from_json(&json).unwrap();
        assert_eq!((read.inner().len(), dropped), (2, 3));
        assert_eq!(read.inner().get("sound"), Some(&AMQPValue::LongInt(7)));
    }
}

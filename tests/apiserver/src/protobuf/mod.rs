//! Bodies in Kubernetes' protobuf encoding, which newer `kubectl` versions use to create
//! built-in objects. They are read into the same JSON that everything else works on;
//! answers are always JSON, which those clients accept too.

mod messages;
mod wire;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Map, Value};

use messages::{Field, Kind, Shape, message};
use wire::{Reader, Token};

/// What every encoded object starts with.
const MAGIC: &[u8] = b"k8s\0";

/// Why a body could not be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum DecodeError {
    #[error("the body does not start as a Kubernetes protobuf object")]
    Magic,
    #[error("the body ends in the middle of a field, or has an unknown wire type")]
    Truncated,
    #[error("{0} is not a type that this server reads in protobuf encoding; send JSON")]
    UnknownType(String),
    #[error("a text field is not UTF-8")]
    Text,
    #[error("a field that holds JSON does not")]
    Json,
}

/// Reads an encoded object.
pub(crate) fn decode(body: &[u8]) -> Result<Value, DecodeError> {
    let body = body.strip_prefix(MAGIC).ok_or(DecodeError::Magic)?;
    let (mut api_version, mut kind, mut raw) = (String::new(), String::new(), &[][..]);
    for token in Reader::new(body) {
        match token? {
            (1, Token::Bytes(type_meta)) => {
                for token in Reader::new(type_meta) {
                    match token? {
                        (1, Token::Bytes(text)) => api_version = string(text)?,
                        (2, Token::Bytes(text)) => kind = string(text)?,
                        _ => {}
                    }
                }
            }
            (2, Token::Bytes(object)) => raw = object,
            _ => {}
        }
    }
    let name = match kind.as_str() {
        // Sent with the version of whatever is deleted.
        "DeleteOptions" => "meta.DeleteOptions".to_owned(),
        _ => {
            let group = api_version.split_once('/').map_or("core", |(group, _)| group);
            format!("{}.{kind}", group.split('.').next().unwrap_or_default())
        }
    };
    let fields = message(&name).ok_or_else(|| DecodeError::UnknownType(format!("{api_version} {kind}")))?;
    let mut object = Map::new();
    read_message(raw, fields, &mut object)?;
    object.insert("apiVersion".into(), api_version.into());
    object.insert("kind".into(), kind.into());
    Ok(object.into())
}

fn read_message(bytes: &[u8], fields: &[Field], object: &mut Map<String, Value>) -> Result<(), DecodeError> {
    for token in Reader::new(bytes) {
        let (number, token) = token?;
        let Some(field) = fields.iter().find(|field| field.number == number) else { continue };
        match field.shape {
            Shape::Inline => {
                if let (Kind::Message(name), Token::Bytes(bytes)) = (&field.kind, token) {
                    read_message(bytes, known(name)?, object)?;
                }
            }
            Shape::List => {
                if let Some(value) = read_value(&field.kind, token)? {
                    let slot = object.entry(&field.name).or_insert_with(|| Value::Array(Vec::new()));
                    if let Value::Array(list) = slot {
                        list.push(value);
                    }
                }
            }
            Shape::Map => {
                if let Token::Bytes(entry) = token {
                    let (key, value) = read_entry(entry, &field.kind)?;
                    let slot = object.entry(&field.name).or_insert_with(|| Value::Object(Map::new()));
                    crate::meta::as_map(slot).insert(key, value);
                }
            }
            Shape::Optional | Shape::Plain => {
                let value = read_value(&field.kind, token)?;
                // A field that is not optional is always sent; zero means that it was not set.
                let set = |value: &Value| field.shape == Shape::Optional || !is_zero(value);
                if let Some(value) = value.filter(set) {
                    object.insert(field.name.clone(), value);
                }
            }
        }
    }
    Ok(())
}

fn known(name: &str) -> Result<&'static [Field], DecodeError> {
    message(name).ok_or_else(|| DecodeError::UnknownType(name.to_owned()))
}

fn read_entry(bytes: &[u8], kind: &Kind) -> Result<(String, Value), DecodeError> {
    let mut key = String::new();
    let mut value = Value::from("");
    for token in Reader::new(bytes) {
        match token? {
            (1, Token::Bytes(text)) => key = string(text)?,
            (2, token) => value = read_value(kind, token)?.unwrap_or(Value::Null),
            _ => {}
        }
    }
    Ok((key, value))
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(flag) => !flag,
        Value::Number(number) => number.as_i64() == Some(0),
        Value::String(text) => text.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Array(_) => false,
    }
}

fn read_value(kind: &Kind, token: Token<'_>) -> Result<Option<Value>, DecodeError> {
    Ok(Some(match (kind, token) {
        (Kind::Integer, Token::Varint(number)) => number.cast_signed().into(),
        (Kind::Bool, Token::Varint(number)) => (number != 0).into(),
        (Kind::String, Token::Bytes(bytes)) => string(bytes)?.into(),
        (Kind::Bytes, Token::Bytes(bytes)) => STANDARD.encode(bytes).into(),
        (Kind::Time { micros }, Token::Bytes(bytes)) => return time(bytes, *micros),
        (Kind::Quantity, Token::Bytes(bytes)) => part(bytes, 1)?,
        (Kind::IntOrString, Token::Bytes(bytes)) => int_or_string(bytes)?,
        (Kind::Json, Token::Bytes(bytes)) => {
            let raw = part_bytes(bytes, 1)?;
            serde_json::from_slice(raw).map_err(|_| DecodeError::Json)?
        }
        (Kind::Message(name), Token::Bytes(bytes)) => {
            let mut object = Map::new();
            read_message(bytes, known(name)?, &mut object)?;
            object.into()
        }
        _ => return Ok(None),
    }))
}

fn string(bytes: &[u8]) -> Result<String, DecodeError> {
    String::from_utf8(bytes.to_vec()).map_err(|_| DecodeError::Text)
}

fn part_bytes(bytes: &[u8], wanted: u32) -> Result<&[u8], DecodeError> {
    for token in Reader::new(bytes) {
        if let (number, Token::Bytes(bytes)) = token?
            && number == wanted
        {
            return Ok(bytes);
        }
    }
    Ok(&[])
}

fn part(bytes: &[u8], wanted: u32) -> Result<Value, DecodeError> {
    string(part_bytes(bytes, wanted)?).map(Value::from)
}

fn time(bytes: &[u8], micros: bool) -> Result<Option<Value>, DecodeError> {
    let (mut seconds, mut nanos) = (0, 0);
    for token in Reader::new(bytes) {
        match token? {
            (1, Token::Varint(number)) => seconds = number.cast_signed(),
            (2, Token::Varint(number)) => nanos = i32::try_from(number).unwrap_or(0),
            _ => {}
        }
    }
    let Ok(at) = Timestamp::new(seconds, nanos) else { return Ok(None) };
    let format = if micros { "%Y-%m-%dT%H:%M:%S.%6fZ" } else { "%Y-%m-%dT%H:%M:%SZ" };
    // The zero time is an empty message.
    Ok((!bytes.is_empty()).then(|| at.strftime(format).to_string().into()))
}

fn int_or_string(bytes: &[u8]) -> Result<Value, DecodeError> {
    let (mut is_string, mut number) = (false, 0);
    for token in Reader::new(bytes) {
        match token? {
            (1, Token::Varint(kind)) => is_string = kind == 1,
            (2, Token::Varint(value)) => number = value.cast_signed(),
            _ => {}
        }
    }
    if is_string { part(bytes, 3) } else { Ok(number.into()) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        let length = u8::try_from(bytes.len()).unwrap();
        [&[number << 3 | 2, length][..], bytes].concat()
    }

    fn envelope(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
        let type_meta = [field(1, api_version.as_bytes()), field(2, kind.as_bytes())].concat();
        [MAGIC.to_vec(), field(1, &type_meta), field(2, raw)].concat()
    }

    #[test]
    fn a_namespace() {
        let label = [field(1, b"k"), field(2, b"v")].concat();
        // Name, an unset namespace, the zero time, and a label.
        let metadata = [field(1, b"n"), field(3, b""), field(8, b""), field(11, &label)].concat();
        let raw = [field(1, &metadata), field(2, b""), field(3, b"")].concat();
        assert_eq!(
            decode(&envelope("v1", "Namespace", &raw)),
            Ok(
                json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n", "labels": {"k": "v"}}})
            )
        );
    }

    #[test]
    fn pointers_keep_zero_and_ports_may_be_names() {
        let spec = [vec![8, 0], vec![5 << 3, 0]].concat();
        let deployment = decode(&envelope("apps/v1", "Deployment", &field(2, &spec))).unwrap();
        assert_eq!(deployment["spec"], json!({"replicas": 0}));
        let port = [vec![3 << 3, 80], field(4, &[8, 1, 2 << 3, 0, 3 << 3 | 2, 1, b'x'])].concat();
        let service = decode(&envelope("v1", "Service", &field(2, &field(1, &port)))).unwrap();
        assert_eq!(service["spec"]["ports"], json!([{"port": 80, "targetPort": "x"}]));
    }

    #[test]
    fn what_is_not_understood_is_said() {
        assert_eq!(decode(b"{}"), Err(DecodeError::Magic));
        assert_eq!(decode(&envelope("x/v1", "Y", b"")), Err(DecodeError::UnknownType("x/v1 Y".into())));
        assert_eq!(decode(&envelope("v1", "Namespace", &[0x0a, 0x7f])), Err(DecodeError::Truncated));
    }
}

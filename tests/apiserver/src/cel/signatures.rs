//! The functions that expressions may call, by the types of their arguments.

use std::collections::HashMap;
use std::sync::LazyLock;

use super::types::Ty;

/// One function a line: the receiver and a colon for methods, the name, arguments, result.
/// `list` and `map` have any elements, `T` is the element of the receiver.
const TABLE: &str = "
size(string) int
size(bytes) int
size(list) int
size(map) int
string:size() int
bytes:size() int
list:size() int
map:size() int
int(any) int
uint(any) uint
double(any) double
string(any) string
bytes(any) bytes
bool(any) bool
dyn(any) any
type(any) type
timestamp(any) timestamp
duration(any) duration
matches(string, string) bool
string:matches(string) bool
string:startsWith(string) bool
string:endsWith(string) bool
string:contains(string) bool
string:charAt(int) string
string:indexOf(string) int
string:indexOf(string, int) int
string:lastIndexOf(string) int
string:lastIndexOf(string, int) int
string:lowerAscii() string
string:upperAscii() string
string:trim() string
string:reverse() string
string:replace(string, string) string
string:replace(string, string, int) string
string:split(string) list<string>
string:split(string, int) list<string>
string:substring(int) string
string:substring(int, int) string
string:format(list) string
string:find(string) string
string:findAll(string) list<string>
strings.quote(string) string
list:join() string
list:join(string) string
list:isSorted() bool
list:min() T
list:max() T
list:sum() T
list:indexOf(any) int
list:lastIndexOf(any) int
ip(string) ip
isIP(string) bool
ip.isCanonical(string) bool
ip:family() int
ip:isUnspecified() bool
ip:isLoopback() bool
ip:isLinkLocalMulticast() bool
ip:isLinkLocalUnicast() bool
ip:isGlobalUnicast() bool
cidr(string) cidr
isCIDR(string) bool
cidr:containsIP(string) bool
cidr:containsIP(ip) bool
cidr:containsCIDR(string) bool
cidr:containsCIDR(cidr) bool
cidr:ip() ip
cidr:masked() cidr
cidr:prefixLength() int
optional.of(any) optional
optional.ofNonZeroValue(any) optional
optional.none() optional
optional:hasValue() bool
optional:value() T
optional:orValue(any) T
optional:or(any) optional
timestamp:getFullYear() int
timestamp:getMonth() int
timestamp:getDayOfMonth() int
timestamp:getHours() int
timestamp:getMinutes() int
timestamp:getSeconds() int
duration:getHours() int
duration:getMinutes() int
duration:getSeconds() int
";

struct Signature {
    receiver: Option<&'static str>,
    arguments: Vec<&'static str>,
    result: &'static str,
}

static FUNCTIONS: LazyLock<HashMap<&'static str, Vec<Signature>>> = LazyLock::new(|| {
    let mut functions: HashMap<&'static str, Vec<Signature>> = HashMap::new();
    for line in TABLE.lines() {
        let Some((head, rest)) = line.split_once('(') else { continue };
        let Some((arguments, result)) = rest.split_once(") ") else { continue };
        let (receiver, name) = head.split_once(':').map_or((None, head), |(a, b)| (Some(a), b));
        let arguments = arguments.split(", ").filter(|argument| !argument.is_empty()).collect();
        functions.entry(name).or_default().push(Signature { receiver, arguments, result });
    }
    functions
});

/// Whether a function of this name exists at all.
pub(super) fn exists(name: &str) -> bool {
    FUNCTIONS.contains_key(name)
}

/// The type of a call's result; `None` when no function of the name takes these arguments.
pub(super) fn result<'a>(name: &str, receiver: Option<&Ty<'a>>, arguments: &[Ty<'a>]) -> Option<Ty<'a>> {
    let fits = |signature: &&Signature| {
        let receiver_fits = match (signature.receiver, receiver) {
            (Some(wanted), Some(given)) => accepts(wanted, given),
            (None, None) => true,
            _ => false,
        };
        receiver_fits
            && signature.arguments.len() == arguments.len()
            && signature.arguments.iter().zip(arguments).all(|(wanted, given)| accepts(wanted, given))
    };
    let found = FUNCTIONS.get(name)?.iter().find(fits)?;
    Some(match (found.result, receiver) {
        ("T", Some(receiver)) => receiver.element(),
        ("optional", _) => {
            let inner = arguments.first().or(receiver).cloned().unwrap_or(Ty::Dyn);
            Ty::Optional(Box::new(if let Ty::Optional(inner) = inner { *inner } else { inner }))
        }
        (text, _) => named(text),
    })
}

fn named<'a>(name: &str) -> Ty<'a> {
    match name {
        "bool" => Ty::Bool,
        "int" => Ty::Int,
        "uint" => Ty::Uint,
        "double" => Ty::Double,
        "string" => Ty::String,
        "bytes" => Ty::Bytes,
        "timestamp" => Ty::Time,
        "duration" => Ty::Duration,
        "ip" => Ty::Ip,
        "cidr" => Ty::Cidr,
        "type" => Ty::Type,
        "list<string>" => Ty::List(Box::new(Ty::String)),
        _ => Ty::Dyn,
    }
}

fn accepts(wanted: &str, given: &Ty<'_>) -> bool {
    match (wanted, given) {
        ("any", _) | (_, Ty::Dyn) => true,
        ("list", given) => matches!(given, Ty::List(_)),
        ("map", given) => matches!(given, Ty::Map(_) | Ty::Object(..)),
        ("optional", given) => matches!(given, Ty::Optional(_)),
        (name, given) => std::mem::discriminant(&named(name)) == std::mem::discriminant(given),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_the_table_is_a_function() {
        let lines = TABLE.lines().filter(|line| !line.is_empty()).count();
        assert_eq!(FUNCTIONS.values().map(Vec::len).sum::<usize>(), lines);
        assert!(matches!(result("cidr", None, &[Ty::String]), Some(Ty::Cidr)));
        assert!(matches!(result("masked", Some(&Ty::Cidr), &[]), Some(Ty::Cidr)));
        assert!(result("masked", Some(&Ty::Ip), &[]).is_none());
    }
}

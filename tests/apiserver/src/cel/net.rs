//! The values of Kubernetes' IP and CIDR libraries.

use std::any::Any;
use std::net::IpAddr;

use cel::ExecutionError;
use cel::common::types::{CelBool, CelInt, CelString, Kind, Type};
use cel::common::value::{StaticVal, Val};
use cel::{DeclarationError, Env, add_member_overload, add_overload};
use ipnet::IpNet;

static IP: Type = Type::simple_type(Kind::Opaque, "net.IP");
static CIDR: Type = Type::simple_type(Kind::Opaque, "net.CIDR");

/// An address, as `ip()` makes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ip(IpAddr);

/// A network with its host bits, as `cidr()` makes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cidr(IpNet);

macro_rules! opaque {
    ($name:ident, $type:ident) => {
        impl Val for $name {
            fn get_type(&self) -> &Type {
                &$type
            }

            fn cel_type() -> &'static Type {
                &$type
            }

            fn equals(&self, other: &dyn Val) -> bool {
                other.downcast_ref::<$name>() == Some(self)
            }

            fn clone_as_boxed<'v>(&self) -> Box<dyn Val + 'v> {
                Box::new(*self)
            }

            fn as_any(&self) -> Option<&dyn Any> {
                Some(self)
            }
        }

        impl StaticVal for $name {}
    };
}

opaque!(Ip, IP);
opaque!(Cidr, CIDR);

/// Parses an address; IPv4 in IPv6 and zones are refused.
fn parse_ip(text: &str) -> Result<IpAddr, String> {
    match text.parse() {
        Ok(IpAddr::V6(ip)) if ip.to_ipv4_mapped().is_some() => {
            Err(format!("IPv4-mapped IPv6 address {text:?} is not allowed"))
        }
        Ok(ip) => Ok(ip),
        Err(_) => Err(format!(
            "IP Address {text:?} parse error during conversion from string: \
             ParseAddr({text:?}): unable to parse IP"
        )),
    }
}

/// Parses a network; host bits may be set.
fn parse_cidr(text: &str) -> Result<IpNet, String> {
    let failed = |why: &str| {
        format!(
            "network address parse error during conversion from string: netip.ParsePrefix({text:?}): {why}"
        )
    };
    let (address, length) = text.rsplit_once('/').ok_or_else(|| failed("no '/'"))?;
    let ip: IpAddr = address.parse().map_err(|_| failed("unable to parse IP"))?;
    let plain =
        length.bytes().all(|byte| byte.is_ascii_digit()) && (length == "0" || !length.starts_with('0'));
    let length = length.parse().ok().filter(|_| plain).ok_or_else(|| failed("bad bits after slash"))?;
    let net = IpNet::new(ip, length).map_err(|_| failed("prefix length out of range"))?;
    match ip {
        IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some() => {
            Err(format!("IPv4-mapped IPv6 address {text:?} is not allowed"))
        }
        _ => Ok(net),
    }
}

fn failed(function: &str) -> impl FnOnce(String) -> ExecutionError {
    move |message| ExecutionError::function_error(function, message)
}

fn ip(text: &CelString<'_>) -> Result<Ip, ExecutionError> {
    parse_ip(text.inner()).map(Ip).map_err(failed("ip"))
}

fn is_ip(text: &CelString<'_>) -> CelBool {
    parse_ip(text.inner()).is_ok().into()
}

fn is_canonical(text: &CelString<'_>) -> Result<CelBool, ExecutionError> {
    let ip = parse_ip(text.inner()).map_err(failed("ip.isCanonical"))?;
    Ok((ip.to_string() == text.inner()).into())
}

fn ip_string(ip: &Ip) -> CelString<'static> {
    ip.0.to_string().into()
}

fn family(ip: &Ip) -> CelInt {
    i64::from(if ip.0.is_ipv4() { 4u8 } else { 6 }).into()
}

fn is_unspecified(ip: &Ip) -> CelBool {
    ip.0.is_unspecified().into()
}

fn is_loopback(ip: &Ip) -> CelBool {
    ip.0.is_loopback().into()
}

fn link_local_multicast(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.octets()[..3] == [224, 0, 0],
        IpAddr::V6(ip) => ip.segments()[0] & 0xff0f == 0xff02,
    }
}

fn link_local_unicast(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

fn is_link_local_multicast(ip: &Ip) -> CelBool {
    link_local_multicast(ip.0).into()
}

fn is_link_local_unicast(ip: &Ip) -> CelBool {
    link_local_unicast(ip.0).into()
}

fn is_global_unicast(ip: &Ip) -> CelBool {
    let broadcast = matches!(ip.0, IpAddr::V4(ip) if ip.is_broadcast());
    let other = ip.0.is_unspecified() || ip.0.is_loopback() || ip.0.is_multicast();
    (!broadcast && !other && !link_local_unicast(ip.0)).into()
}

fn cidr(text: &CelString<'_>) -> Result<Cidr, ExecutionError> {
    parse_cidr(text.inner()).map(Cidr).map_err(failed("cidr"))
}

#[expect(non_snake_case, reason = "the name that expressions call it by")]
fn isCIDR(text: &CelString<'_>) -> CelBool {
    parse_cidr(text.inner()).is_ok().into()
}

#[expect(non_snake_case, reason = "the name that expressions call it by")]
fn isIP(text: &CelString<'_>) -> CelBool {
    is_ip(text)
}

fn cidr_string(net: &Cidr) -> CelString<'static> {
    net.0.to_string().into()
}

fn contains_ip(net: &Cidr, ip: &Ip) -> CelBool {
    net.0.contains(&ip.0).into()
}

fn contains_ip_string(net: &Cidr, text: &CelString<'_>) -> Result<CelBool, ExecutionError> {
    let ip = parse_ip(text.inner()).map_err(failed("containsIP"))?;
    Ok(contains_ip(net, &Ip(ip)))
}

fn contains_cidr(net: &Cidr, other: &Cidr) -> CelBool {
    net.0.trunc().contains(&other.0.trunc()).into()
}

fn contains_cidr_string(net: &Cidr, text: &CelString<'_>) -> Result<CelBool, ExecutionError> {
    let other = parse_cidr(text.inner()).map_err(failed("containsCIDR"))?;
    Ok(contains_cidr(net, &Cidr(other)))
}

fn cidr_ip(net: &Cidr) -> Ip {
    Ip(net.0.addr())
}

fn masked(net: &Cidr) -> Cidr {
    Cidr(net.0.trunc())
}

fn prefix_length(net: &Cidr) -> CelInt {
    i64::from(net.0.prefix_len()).into()
}

/// Declares the libraries.
pub(super) fn extension(env: &mut Env) -> Result<(), DeclarationError> {
    env.add_type(IP.to_owned())?;
    env.add_type(CIDR.to_owned())?;
    add_overload!(env, fn ip: (CelString<'_>) -> Result<Ip>)?;
    add_overload!(env, fn isIP: (CelString<'_>) -> CelBool, name = "isIP")?;
    add_overload!(env, fn is_canonical: (CelString<'_>) -> Result<CelBool>, name = "ip.isCanonical")?;
    add_overload!(env, fn ip_string: (Ip) -> CelString<'_>, name = "string")?;
    add_member_overload!(env, fn family: (Ip) -> CelInt)?;
    add_member_overload!(env, fn is_unspecified: (Ip) -> CelBool)?;
    add_member_overload!(env, fn is_loopback: (Ip) -> CelBool)?;
    add_member_overload!(env, fn is_link_local_multicast: (Ip) -> CelBool)?;
    add_member_overload!(env, fn is_link_local_unicast: (Ip) -> CelBool)?;
    add_member_overload!(env, fn is_global_unicast: (Ip) -> CelBool)?;
    add_overload!(env, fn cidr: (CelString<'_>) -> Result<Cidr>)?;
    add_overload!(env, fn isCIDR: (CelString<'_>) -> CelBool, name = "isCIDR")?;
    add_overload!(env, fn cidr_string: (Cidr) -> CelString<'_>, name = "string")?;
    add_member_overload!(env, fn contains_ip: (Cidr, Ip) -> CelBool, name = "containsIP")?;
    add_member_overload!(env, fn contains_ip_string: (Cidr, CelString<'_>) -> Result<CelBool>, name = "containsIP")?;
    add_member_overload!(env, fn contains_cidr: (Cidr, Cidr) -> CelBool, name = "containsCIDR")?;
    add_member_overload!(env, fn contains_cidr_string: (Cidr, CelString<'_>) -> Result<CelBool>, name = "containsCIDR")?;
    add_member_overload!(env, fn cidr_ip: (Cidr) -> Ip, name = "ip")?;
    add_member_overload!(env, fn masked: (Cidr) -> Cidr)?;
    add_member_overload!(env, fn prefix_length: (Cidr) -> CelInt)?;
    Ok(())
}

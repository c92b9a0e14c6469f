//! Egresses on wires of every size: what fits gets there, and what does not is told the size that does. The programs' and the
//! kernel's alike.

use anyhow::Result;
use coil_lab::{
    Lab,
    config::{Ip, Options},
};

use crate::{
    common::{LIMIT, check, end, name},
    egress::{DESTINATIONS, egress, socket, start_with_client_on},
};

/// 20 for IPv4 or 40 for IPv6, and 8 for UDP: FOU has no header of its own.
fn tunnel(ip: Ip) -> u32 {
    match ip {
        Ip::V4 => 28,
        Ip::V6 => 48,
    }
}

/// Headers of an echo request.
fn headers(ip: Ip) -> u32 {
    match ip {
        Ip::V4 => 20 + 8,
        Ip::V6 => 40 + 8,
    }
}

/// One packet that may not be in fragments.
fn ping(lab: &Lab, ip: Ip, packet: u32) -> Result<(bool, String)> {
    let (flag, size) = (ip.flag(), packet - headers(ip));
    let words = format!("ping {flag} -c 1 -W 3 -M do -s {size} {}", ip.world());
    let done = lab.exec("default/client", &words)?;
    Ok((done.ok, done.stdout + &done.stderr))
}

/// A datagram that may not be in fragments comes back, or its sender is told of the tunnel's size.
fn whole(lab: &Lab, ip: Ip, size: u32, fits: u32) -> Result<()> {
    let words = format!("coil-lab tool udp-whole --bytes {size} --timeout 5 {}", socket(ip.world(), 7));
    // The first answer may be lost to telling the world of the size.
    let said = lab.wait_for("what becomes of a datagram", LIMIT, |lab| {
        let done = lab.exec("default/client", &words)?;
        Ok(if done.ok { Ok(done.stdout) } else { Err(done.stderr) })
    })?;
    let wanted = if size + headers(ip) <= fits {
        format!("{size} bytes came back equal")
    } else {
        format!("{size} bytes are too many: the MTU is {fits}")
    };
    check(said.trim() == wanted, || format!("{} of {size}: {said}, not {wanted}", ip.name()))
}

/// `times`: how often 1 MB goes out and back.
fn on_a_wire_of(mtu: u32, datapath: &str, times: u32) -> Result<()> {
    let options =
        Options { mtu, datapath: datapath.to_owned(), ..Options::named(&name(&format!("{datapath}{mtu}"))) };
    let lab = start_with_client_on(options, &egress("nat", &format!("destinations: {DESTINATIONS}")))?;
    for ip in [Ip::V4, Ip::V6] {
        let fits = mtu - tunnel(ip);
        let (ok, said) = ping(&lab, ip, fits)?;
        check(ok, || format!("{fits} bytes on a wire of {mtu}: {said}"))?;
        let (ok, said) = ping(&lab, ip, fits + 1)?;
        let told = [format!("mtu: {fits}"), format!("mtu={fits}"), format!("mtu = {fits}")];
        check(!ok && told.iter().any(|told| said.contains(told)), || {
            format!("{} bytes on a wire of {mtu}: {said}", fits + 1)
        })?;
        for size in [fits, fits + 1] {
            whole(&lab, ip, size - headers(ip), fits)?;
        }
        let to = socket(ip.world(), 7);
        lab.exec("default/client", &format!("coil-lab tool tcp-echo --times {times} --timeout 20 {to}"))?
            .success()?;
        // Datagrams of the usual sizes, in fragments where they have to be.
        for size in [1472, 1473] {
            whole(&lab, ip, size, fits)?;
            let echo = |times: u32| {
                let words = format!("coil-lab tool udp-echo --bytes {size} --times {times} --timeout 3 {to}");
                lab.exec("default/client", &words)
            };
            // An answer that does not fit tells the world the size, and is lost for that.
            let first = echo(1)?;
            check(first.ok || size + headers(ip) > fits, || first.stderr)?;
            echo(20)?.success()?;
        }
    }
    end(lab)
}

#[test]
fn clients_on_a_usual_wire() -> Result<()> {
    on_a_wire_of(1500, "auto", 100)
}

#[test]
fn clients_on_a_narrow_wire() -> Result<()> {
    on_a_wire_of(1400, "auto", 100)
}

#[test]
fn clients_on_a_wide_wire() -> Result<()> {
    on_a_wire_of(9000, "auto", 100)
}

#[test]
#[ignore = "needs FOU: cargo xtask vm --only lab"]
fn by_the_kernel_clients_on_a_narrow_wire() -> Result<()> {
    on_a_wire_of(1400, "kernel", 5)
}

#[test]
#[ignore = "needs FOU: cargo xtask vm --only lab"]
fn by_the_kernel_clients_on_a_wide_wire() -> Result<()> {
    on_a_wire_of(9000, "kernel", 5)
}

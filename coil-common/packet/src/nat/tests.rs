use super::*;

/// The states after packets: `>` of the client, `<` of the remote, then flags.
fn after(packets: &[&str]) -> u8 {
    packets.iter().fold(State::New as u8, |state, packet| {
        let (side, flags) = packet.split_at(1);
        let flags = flags.chars().fold(0, |flags, c| {
            flags
                | match c {
                    'S' => tcp::SYN,
                    'F' => tcp::FIN,
                    'R' => tcp::RST,
                    _ => tcp::ACK,
                }
        });
        next_state(state, flags, side == "<")
    })
}

#[test]
fn states_of_tcp() {
    for (packets, state, seconds) in [
        (&[">S"][..], State::New, 240),
        (&[">S", "<SA"], State::Established, 7440),
        (&[">S", "<SA", ">A", ">FA"], State::ClientFin, 7440),
        (&[">S", "<SA", ">FA", "<A", "<A"], State::ClientFin, 7440),
        (&[">S", "<SA", "<FA", ">A"], State::RemoteFin, 7440),
        (&[">S", "<SA", ">FA", "<FA", ">A"], State::Closed, 240),
        (&[">S", "<SA", "<FA", ">FA", "<A"], State::Closed, 240),
        (&[">S", "<SA", ">FA", "<FA", ">S"], State::New, 240),
        (&[">S", "<RA"], State::Reset, 240),
        (&[">S", "<SA", "<R"], State::Reset, 240),
        (&[">S", "<SA", "<R", ">A"], State::Established, 7440),
        (&[">S", "<SA", ">S"], State::Established, 7440),
        (&[">A", "<A"], State::Established, 7440),
    ] {
        assert_eq!(after(packets), state as u8, "{packets:?}");
        assert_eq!(idle_limit(tcp::PROTOCOL, state as u8), seconds, "{packets:?}");
    }
}

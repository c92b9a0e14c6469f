#!/bin/sh
# Proves that this kernel has what egress without eBPF needs.
#
# usage: fou.sh modules | FAMILY SOURCE_PORT     (FAMILY: v4 or v6, SOURCE_PORT: fixed or auto)
#
# A client reaches the world through a gateway pod, as Coil's kernel path does it:
#
#   client ──┐            ┌── world   knows the way to the gateway only
#            ├── node ────┤
#  gateway ──┘            (forwards; sees UDP port 5555 between client and gateway)
#
# client:  ipip or ip6tnl link in FOU (UDP 5555) towards the gateway, the route to the world over it
# gateway: the same link back to the client, nftables masquerade, invalid packets dropped
set -eu

fail() {
    echo "FAIL: $*"
    exit 1
}

modules() {
    for module in fou fou6 ipip ip6_tunnel dummy veth bridge sch_ingress cls_bpf act_bpf \
        nf_tables nft_masq nft_chain_nat nft_ct nf_conntrack; do
        modprobe "$module" || fail "this kernel has no module $module"
    done
}

# A namespace with an eth0 whose other end is in the node: name, its address, the node's address.
attach() {
    ip netns add "$1"
    ip -n "$1" link set lo up
    ip -n node link add "to-$1" type veth peer name eth0 netns "$1"
    ip -n "$1" address add "$2" dev eth0 $nodad
    ip -n node address add "$3" dev "to-$1" $nodad
    ip -n "$1" link set eth0 up
    ip -n node link set "to-$1" up
}

# The tunnel: namespace, its address, the other's address.
tunnel() {
    if [ "$family" = v4 ]; then
        ip -n "$1" fou add port 5555 ipproto 4
        ip -n "$1" link add fou type ipip local "$2" remote "$3" ttl 225 \
            encap fou encap-sport "$sport" encap-dport 5555
        ip -n "$1" link add coil_ipip4 type ipip external
    else
        ip -n "$1" fou add port 5555 ipproto 41 -6
        ip -n "$1" link add fou type ip6tnl mode ip6ip6 local "$2" remote "$3" hoplimit 225 \
            encaplimit none encap fou encap-sport "$sport" encap-dport 5555
        ip -n "$1" link add coil_ipip6 type ip6tnl mode ip6ip6 external
        ip -n "$1" link set coil_ipip6 up
    fi
    ip -n "$1" link set fou up
}

packets() { # namespace, chain: the one counter's packets
    ip netns exec "$1" nft list chain inet seen "$2" | sed -n 's/.*counter packets \([0-9]*\).*/\1/p'
}

clean() {
    for name in client gateway world node; do
        ip netns delete "$name" 2>/dev/null || true
    done
    rm -f /run/fou.input
}

journey() {
    family=$1
    case $2 in
    fixed) sport=5555 same='==' ;;
    auto) sport=auto same='!=' ;;
    *) fail "no such source port: $2" ;;
    esac
    case $family in
    v4)
        ip=ip flag=-4 nodad='' all=net.ipv4.ip_forward prefix=30 full=32 overhead=28
        client=10.64.0.2 client_node=10.64.0.1 gateway=10.64.1.2 gateway_node=10.64.1.1
        world=198.51.100.2 world_node=198.51.100.1
        ;;
    v6)
        ip=ip6 flag=-6 nodad=nodad all=net.ipv6.conf.all.forwarding prefix=126 full=128 overhead=48
        client=fd64::2 client_node=fd64::1 gateway=fd64::6 gateway_node=fd64::5
        world=2001:db8:9::2 world_node=2001:db8:9::1
        ;;
    *) fail "no such family: $family" ;;
    esac

    modprobe -a fou fou6 ipip ip6_tunnel
    trap clean EXIT
    ip netns add node
    attach client "$client/$prefix" "$client_node/$prefix"
    attach gateway "$gateway/$prefix" "$gateway_node/$prefix"
    attach world "$world/$prefix" "$world_node/$prefix"
    for name in node gateway; do
        ip netns exec $name sysctl -q -w $all=1
    done
    ip -n client route add default via "$client_node"
    ip -n gateway route add default via "$gateway_node"
    ip -n world route add "$gateway/$full" via "$world_node"

    tunnel client "$client" "$gateway"
    tunnel gateway "$gateway" "$client"
    ip -n client route add "$world/$full" dev fou src "$client" mtu $((1500 - overhead))
    # What comes out of the tunnel is forwarded; its way back is the tunnel.
    ip $flag -n gateway rule add iif eth0 lookup 118 pref 2000
    ip -n gateway route add "$client/$full" dev fou table 118
    ip netns exec gateway nft -f - <<EOF
table $ip egress {
    chain postrouting {
        type nat hook postrouting priority 100
        $ip saddr != $gateway oifname "eth0" masquerade
    }
    chain forward {
        type filter hook forward priority 0
        ct state invalid drop
    }
}
EOF
    ip netns exec node nft -f - <<EOF
table inet seen {
    chain tunnelled {
        type filter hook forward priority 0
        $ip saddr $client udp dport 5555 udp sport $same 5555 counter
    }
}
EOF
    ip netns exec world nft -f - <<EOF
table inet seen {
    chain translated {
        type filter hook input priority 0
        $ip saddr $gateway counter
    }
}
EOF

    ip netns exec client ping -c 3 -i 0.3 -W 20 "$world" || {
        ip -n client -s link
        ip -n gateway -s link
        fail "no answer from the world through the gateway"
    }
    [ "$(packets node tunnelled)" -ge 3 ] || fail "nothing was seen in UDP 5555 with source port $2"
    [ "$(packets world translated)" -ge 3 ] || fail "the world did not see the gateway's address"

    # A stream of segments larger than the link, which the tunnel has to cut.
    head -c 1048576 /dev/zero | ip netns exec world busybox nc -l -p 9000 >/dev/null &
    tries=100
    until ip netns exec world ss -Hltn | grep -q ':9000 '; do
        tries=$((tries - 1))
        [ $tries -gt 0 ] || fail "the world's server does not listen"
        sleep 0.1
    done
    # An input that never ends: nc leaves when its own does.
    mkfifo /run/fou.input
    got=$(ip netns exec client timeout 60 busybox nc "$world" 9000 3<>/run/fou.input <&3 | head -c 1048576 | wc -c)
    [ "$got" = 1048576 ] || fail "$got of 1048576 bytes came through TCP"
    echo "ping and 1 MiB of TCP went through the gateway"
}

case $1 in
modules) modules ;;
*) journey "$1" "$2" ;;
esac

//! What is around the programs in a machine: the way out of the world, and the host's sockets.

use std::io::Write as _;
use std::net::{IpAddr, TcpListener, UdpSocket};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use nsnet_common::cases::world::{
    ENDS, Kind, ROUTER_MAC, ROUTER_V4, ROUTER_V6, ROUTES, SECOND_V4, SIDE_IFINDEX, SOCKETS, UPLINK, UPLINK_IFINDEX,
};
use nsnet_common::layout::flags;
use nsnet_common::tables::Route;
use nsnet_common::wire::{IpAddress, IpProtocol, Mac};

/// The host's sockets, for as long as they are kept.
pub(super) type Sockets = (Vec<TcpListener>, Vec<UdpSocket>);

/// Makes the way out of the world, in the calling thread's network namespace.
pub(super) fn outside() -> Result<Sockets> {
    let mut lines = vec!["link set lo up".to_owned()];
    for (name, index, mac) in [("uplink", UPLINK_IFINDEX, UPLINK.mac), ("side", SIDE_IFINDEX, Mac([2, 0, 0, 0, 0, 9]))]
    {
        lines.push(format!("link add {name} index {index} address {mac} type veth peer name {name}-ns"));
        for name in [name, &format!("{name}-ns")] {
            lines.push(format!("link set {name} addrgenmode none"));
            lines.push(format!("link set {name} up"));
        }
    }
    for ip in [text(IpAddress::v4(UPLINK.ipv4)), text(IpAddress::v4(SECOND_V4))] {
        lines.push(format!("address add {ip}/24 brd 192.0.2.255 dev uplink"));
    }
    lines.push(format!("address add {}/64 dev uplink nodad", text(IpAddress(UPLINK.ipv6))));
    lines.push("address add 192.168.77.1/24 brd 192.168.77.255 dev side".to_owned());
    let routers = [text(IpAddress::v4(ROUTER_V4)), text(IpAddress(ROUTER_V6))];
    for router in &routers {
        lines.push(format!("neighbour replace {router} lladdr {ROUTER_MAC} dev uplink nud permanent"));
    }
    for (prefix, bits, kind) in ROUTES {
        let [v4, v6] = &routers;
        let router = if prefix.contains(':') { v6 } else { v4 };
        // What is in the uplink's own subnets, or is the host's, is there by the addresses.
        let is_there =
            prefix.starts_with("192.0.2.") || prefix.starts_with("2001:db8:1::") || prefix.starts_with("192.168.77.");
        lines.push(match kind {
            _ if is_there => continue,
            Kind::Near | Kind::Is(Route::Local | Route::Forward) => continue,
            Kind::Far(mtu) => format!("route add {prefix}/{bits} via {router} dev uplink mtu lock {mtu}"),
            Kind::Aside => format!("route add {prefix}/{bits} dev side"),
            Kind::Is(Route::Unreachable) => format!("route add unreachable {prefix}/{bits}"),
            Kind::Is(Route::Prohibited) => format!("route add prohibit {prefix}/{bits}"),
            Kind::Is(Route::Blackhole) => format!("route add blackhole {prefix}/{bits}"),
        });
    }
    let mut ip = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().context("run ip")?;
    ip.stdin.take().context("write to ip")?.write_all(lines.join("\n").as_bytes())?;
    ensure!(ip.wait()?.success(), "ip failed");
    for end in ENDS.into_iter().filter(|end| end.network.0 != 0 && flags::HOST & end.flags != 0) {
        for family in ["ipv4", "ipv6"] {
            std::fs::write(format!("/proc/sys/net/{family}/conf/{}/forwarding", end.name), "1")?;
        }
    }
    let mut sockets = Sockets::default();
    for (protocol, ip, port) in SOCKETS {
        let address = (address(ip), port);
        match protocol {
            IpProtocol::TCP => sockets.0.push(TcpListener::bind(address)?),
            _ => sockets.1.push(UdpSocket::bind(address)?),
        }
    }
    Ok(sockets)
}

fn address(ip: IpAddress) -> IpAddr {
    match ip.as_v4() {
        Some(ip) => IpAddr::from(ip),
        None => IpAddr::from(ip.0),
    }
}

fn text(ip: IpAddress) -> String {
    address(ip).to_string()
}

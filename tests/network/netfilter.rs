//! Rules of the host's firewall: those that packets of nsnet do not pass are told, and punted packets pass them.

use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nsnet::kernel::sysctl;
use nsnet::lab::ping::answers;
use nsnet::lab::{HOST_IP, Lab, TcpServer, WAN_IP, tcp};
use serde_json::{Value, json};

use super::bed::{lab, text, until};
use super::cut_off::{ATTACH, host, red_is_attached};
use super::world::complaint;

/// Runs a firewall's tool in the lab's host. `false` when there is no such tool here.
fn tool(lab: &Lab, line: &str, input: &str) -> Result<bool> {
    let mut words = line.split_whitespace();
    let program = words.next().context("no tool")?;
    let mut command = Command::new(program);
    command.args(words).stdin(Stdio::piped()).stdout(Stdio::null());
    let output = lab.within("host", || {
        let mut child = match command.spawn() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return anyhow::Ok(None),
            child => child?,
        };
        child.stdin.take().context("no stdin")?.write_all(input.as_bytes())?;
        Ok(Some(child.wait_with_output()?))
    })??;
    let Some(output) = output else {
        println!("skipped: there is no {program} here");
        return Ok(false);
    };
    ensure!(output.status.success(), "`{line}` ended with {}", output.status);
    Ok(true)
}

/// The check of `doctor`, and its rules as "family table chain rule what (comment)".
fn doctor(lab: &Lab) -> Result<(Value, Vec<String>)> {
    let output = lab.try_nsnet("-o json doctor")?;
    let checks: Vec<Value> = serde_json::from_slice(&output.stdout)?;
    let check = checks.into_iter().find(|check| check["check"] == "netfilter").context("no check of netfilter")?;
    let rules = check["bypassed"].as_array().context("`bypassed` is no array")?;
    let row = |rule: &Value| -> Result<String> {
        let words = ["source", "family", "table", "chain", "rule", "what"].map(|column| text(&rule[column]));
        let words = words.into_iter().collect::<Result<Vec<_>>>()?.join(" ");
        Ok(rule["comment"].as_str().map_or(words.clone(), |comment| format!("{words} ({comment})")))
    };
    let rules = rules.iter().map(row).collect::<Result<Vec<_>>>()?;
    Ok((check, rules))
}

#[test]
fn an_empty_host_has_none() -> Result<()> {
    let lab = lab()?;
    let (check, rules) = doctor(&lab)?;
    assert_eq!((&check["finding"], &check["detail"]), (&json!("ok"), &json!("no rules are bypassed")));
    assert_eq!(rules, Vec::<String>::new());
    let made = lab.try_nsnet("network add v-net-0 --subnet 192.168.15.0/24")?;
    assert_eq!(String::from_utf8_lossy(&made.stderr), "");
    Ok(())
}

#[test]
fn rules_of_nftables() -> Result<()> {
    const RULES: &str = r#"
        table inet own {
            chain mapped {
                counter accept
            }
            chain reached {
                tcp dport 22 drop comment "no guests"
            }
            chain of_input {
                accept
            }
            chain forward {
                type filter hook forward priority 0; policy drop;
                jump reached
                ip daddr vmap { 10.1.1.1 : jump mapped, 10.1.1.2 : drop }
            }
            chain input {
                type filter hook input priority 0; policy drop;
                jump of_input
            }
            chain post {
                type nat hook postrouting priority 100;
                masquerade
            }
        }
        table netdev here {
            chain uplink {
                type filter hook ingress device "uplink" priority 0;
                udp dport 9 drop
            }
            chain lo {
                type filter hook ingress device "lo" priority 0;
                udp dport 9 drop
            }
        }
    "#;
    let lab = lab()?;
    if !tool(&lab, "nft -f -", RULES)? {
        return Ok(());
    }
    let (check, rules) = doctor(&lab)?;
    assert_eq!(check["finding"], json!("note"));
    // Handles are the kernel's choice.
    let is_handle = |word: &&str| word.parse::<u64>().is_err();
    let without_handle = |rule: &String| rule.split(' ').filter(is_handle).collect::<Vec<_>>().join(" ");
    let mut rules: Vec<String> = rules.iter().map(without_handle).collect();
    rules.sort();
    let expected = [
        "nftables inet own forward policy drop",
        "nftables inet own forward rule handle ",
        "nftables inet own forward rule handle jump reached",
        "nftables inet own mapped rule handle accept",
        "nftables inet own post rule handle masquerade",
        "nftables inet own reached rule handle drop (no guests)",
        "nftables netdev here uplink rule handle drop",
    ];
    assert_eq!(rules, expected);
    let table = lab.nsnet("doctor")?;
    assert_eq!(table.lines().filter(|line| line.starts_with("netfilter")).count(), 1 + expected.len(), "{table}");
    // The first network tells of them, the next does not.
    let made = lab.try_nsnet("network add v-net-0 --subnet 192.168.15.0/24")?;
    let notes = String::from_utf8_lossy(&made.stderr);
    assert_eq!(notes.lines().count(), expected.len(), "{notes}");
    assert!(notes.lines().all(|line| line.ends_with("is not seen by packets of nsnet")), "{notes}");
    assert!(notes.contains("drop (no guests) is not seen"), "{notes}");
    let made = lab.try_nsnet("network add v-net-1 --subnet 192.168.16.0/24")?;
    assert_eq!(String::from_utf8_lossy(&made.stderr), "");
    Ok(())
}

#[test]
fn many_rules_are_cut_short_at_the_first_network() -> Result<()> {
    let lab = lab()?;
    let rules = "tcp dport 22 drop\n".repeat(12);
    let rules = format!("table ip t {{\nchain c {{\ntype filter hook forward priority 0;\n{rules}}}\n}}\n");
    if !tool(&lab, "nft -f -", &rules)? {
        return Ok(());
    }
    let made = lab.try_nsnet("network add v-net-0 --subnet 192.168.15.0/24")?;
    let notes = String::from_utf8_lossy(&made.stderr);
    assert_eq!(notes.lines().count(), 11, "{notes}");
    assert!(notes.ends_with("nsnet: and 2 more, see `nsnet doctor`\n"), "{notes}");
    Ok(())
}

/// The same rules by either iptables. In iptables-nft's rules a comment is a match as in the old tables.
#[test]
fn rules_of_iptables() -> Result<()> {
    for (suffix, source) in [("-nft", "nftables"), ("-legacy", "iptables-legacy")] {
        let lab = lab()?;
        let lines = [
            format!("iptables{suffix} -P FORWARD DROP"),
            format!("iptables{suffix} -N DOCKER-USER"),
            format!("iptables{suffix} -A DOCKER-USER -p tcp -m comment --comment guests -j REJECT"),
            format!("iptables{suffix} -A FORWARD -j DOCKER-USER"),
            format!("iptables{suffix} -A INPUT -p tcp -j DROP"),
            format!("ip6tables{suffix} -t nat -A POSTROUTING -j MASQUERADE"),
        ];
        let mut is_there = true;
        for line in &lines {
            is_there = is_there && tool(&lab, line, "")?;
        }
        if !is_there {
            continue;
        }
        let (_, rules) = doctor(&lab)?;
        let chains = [
            ("ip filter FORWARD policy", "drop"),
            ("ip filter FORWARD rule", "jump DOCKER-USER"),
            ("ip filter DOCKER-USER rule", "(guests)"),
            ("ip6 nat POSTROUTING rule", ""),
        ];
        for (begin, end) in chains {
            let found = rules.iter().any(|rule| rule.starts_with(&format!("{source} {begin}")) && rule.ends_with(end));
            assert!(found, "{source}: no {begin} ... {end} in {rules:#?}");
        }
        assert_eq!(rules.len(), chains.len(), "{source}: {rules:#?}");
        tool(&lab, &format!("iptables{suffix} -F"), "")?;
        tool(&lab, &format!("iptables{suffix} -P FORWARD ACCEPT"), "")?;
        tool(&lab, &format!("ip6tables{suffix} -t nat -F"), "")?;
        assert_eq!(doctor(&lab)?.1, Vec::<String>::new(), "{source}");
    }
    Ok(())
}

/// Looking must not make tables that were not there: that costs every packet a look at them.
#[test]
fn looking_makes_no_tables() -> Result<()> {
    let lab = lab()?;
    doctor(&lab)?;
    for names in ["ip_tables_names", "ip6_tables_names"] {
        let names = format!("/proc/thread-self/net/{names}");
        let tables = lab.within("host", || std::fs::read_to_string(&names))?;
        assert_eq!(tables.unwrap_or_default(), "", "{names}");
    }
    Ok(())
}

/// Behaviours 36: what leaves a punted network is forwarded, translated and refused by the host's own rules; what is
/// published comes in as ever.
#[test]
fn punted_packets_pass_the_rules() -> Result<()> {
    const RULES: &str = r#"
        table inet own {
            counter seen {}
            chain forward {
                type filter hook forward priority 0; policy drop;
                ct state established,related accept
                iifname "v-net-0" counter name seen accept
            }
        }
        table inet translated {
            chain postrouting {
                type nat hook postrouting priority 100;
                oifname "uplink" masquerade
            }
        }
    "#;
    let lab = host()?;
    let made = lab.try_nsnet("network add v-net-0 --subnet 192.168.15.0/24 fd15::/64 --punt")?;
    let told = String::from_utf8_lossy(&made.stderr);
    ensure!(made.status.success(), "{told}");
    for setting in ["net.ipv4.ip_forward is 0", "net.ipv6.conf.all.forwarding is 0"] {
        ensure!(told.contains(setting), "it does not say that {setting}: {told}");
    }
    lab.nsnet(ATTACH)?;
    for key in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
        lab.within("host", || sysctl::write(key, "1"))??;
    }
    // Nobody out there knows a way back to red's own address.
    ensure!(red_is_attached(&lab).is_err(), "red reaches the outside without a translation");
    if !tool(&lab, "nft -f -", RULES)? {
        return Ok(());
    }
    let is_reached = || Ok(red_is_attached(&lab).is_ok());
    until(Duration::from_secs(10), is_reached).context("red does not reach the outside by the host's rules")?;
    let servers = ["192.168.1.3", "fd01::3"].map(|ip| {
        let at = SocketAddr::new(ip.parse()?, 0);
        lab.within("wan", || TcpServer::start(at))?
    });
    for server in servers {
        let server = server?;
        lab.within("red", || tcp::transfer(server.addr(), 1_000_000))??;
        ensure!(server.peers().iter().all(|peer| [HOST_IP, "fd01::1"].contains(&peer.ip().to_string().as_str())));
    }
    lab.nsnet("publish add @red 8080:80")?;
    let _server =
        lab.within("red", || TcpServer::banner(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 80), "red"))??;
    let published = SocketAddr::new(HOST_IP.parse()?, 8080);
    ensure!(lab.within("wan", || tcp::fetch(published))?? == "red", "a published port is not reached");
    ensure!(lab.json("ct list")?.as_array().is_some_and(|flows| flows.len() == 1), "not only the published one's flow");

    // A rule of the host's decides.
    ensure!(tool(&lab, "nft -f -", "insert rule inet own forward iifname \"v-net-0\" ip daddr 192.168.1.3 drop\n")?);
    let is_refused = lab.within("red", || answers(WAN_IP.parse()?, 2, Duration::from_millis(500)))??;
    ensure!(!is_refused, "the host's rule does not hold");

    for wrong in ["masquerade on v-net-0", "network add two --subnet 10.9.0.0/24 --punt --internal"] {
        let refused = complaint(&lab.try_nsnet(wrong)?)?;
        ensure!(refused.contains("--punt"), "`{wrong}`: {refused}");
    }
    Ok(())
}

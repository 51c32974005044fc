//! Examples of every verb: `--help` ends with them, and the manual has a section of them.

use clap::builder::Styles;
use clap::{Command, CommandFactory as _};

use super::args::Cli;

/// A line that works as it is, and what it does; nothing where the line says so.
type Example = (&'static str, &'static str);

/// The examples of the verbs that have none below them, and of the whole. Verbs with others below show the first of each.
const EXAMPLES: &[(&str, &[Example])] = &[
    (
        "",
        &[
            ("nsnet ns add red blue", ""),
            ("nsnet network add v-net-0 --subnet 192.168.15.0/24 --masquerade", ""),
            ("nsnet attach v-net-0 red", ""),
            ("nsnet attach v-net-0 blue", ""),
            ("nsnet publish add blue 8080:80", "port 8080 of the host is port 80 of blue"),
            ("nsnet ns exec red -- ping -c 3 192.168.15.2", ""),
            ("nsnet apply -f host.toml", "or all of it from a file"),
            ("nsnet down", "the end of it"),
        ],
    ),
    ("ns add", &[("nsnet ns add red blue", "")]),
    (
        "ns del",
        &[("nsnet ns del red blue", ""), ("nsnet ns del red --force", "also when it is in a network or on a cable")],
    ),
    ("ns list", &[("nsnet ns list", ""), ("nsnet ns list -o json", "")]),
    ("ns exec", &[("nsnet ns exec red -- ping -c 3 192.168.15.2", ""), ("nsnet ns exec red -- bash", "")]),
    ("cable add", &[("nsnet cable add red blue --address-a 10.0.0.1/30 --address-b 10.0.0.2/30", "")]),
    ("cable del", &[("nsnet cable del red blue", "")]),
    ("cable list", &[("nsnet cable list", "")]),
    (
        "network add",
        &[
            ("nsnet network add v-net-0 --subnet 192.168.15.0/24", "the host is 192.168.15.254 there"),
            ("nsnet network add v-net-0 --subnet 192.168.15.0/24 fd15::/64 --masquerade", "both families, and out"),
            ("nsnet network add quiet --subnet 10.9.0.0/24 --internal", "no way out and none in"),
            ("nsnet network add web --subnet 10.8.0.0/24 --masquerade --uplink eth1", "out by eth1 only"),
        ],
    ),
    (
        "network del",
        &[("nsnet network del v-net-0", ""), ("nsnet network del v-net-0 --force", "detaches its namespaces first")],
    ),
    ("network list", &[("nsnet network list", "")]),
    ("network show", &[("nsnet network show v-net-0", "")]),
    (
        "network mode",
        &[
            ("nsnet network mode v-net-0", "where its frames are forwarded, and why"),
            ("nsnet network mode v-net-0 xdp", "where its namespaces send frames of XDP"),
            ("nsnet network mode v-net-0 tc --uplink auto", "what comes in, where the NIC is made for it"),
        ],
    ),
    ("masquerade on", &[("nsnet masquerade on v-net-0", "")]),
    ("masquerade off", &[("nsnet masquerade off v-net-0", "")]),
    (
        "attach",
        &[
            ("nsnet attach v-net-0 red", "answers with the address that it chose"),
            ("nsnet attach v-net-0 red --ip 192.168.15.1 fd15::1 --ifname eth0", ""),
            ("nsnet attach v-net-0 vms --learn", "there is a bridge in it"),
        ],
    ),
    ("detach", &[("nsnet detach v-net-0 red", "")]),
    (
        "route add",
        &[
            ("nsnet route add red default", "by the gateway of its network"),
            ("nsnet route add red 192.168.1.0/24 via 192.168.15.5", ""),
        ],
    ),
    ("route del", &[("nsnet route del red 192.168.1.0/24", "")]),
    ("route list", &[("nsnet route list red", "")]),
    (
        "publish add",
        &[
            ("nsnet publish add blue 8080:80", "TCP, at every address of the host"),
            ("nsnet publish add blue 192.168.1.1:53:5353/udp", "at one address"),
            ("nsnet publish add blue 5000-5010:5000-5010/udp 443:8443", "a range, and one more"),
            ("nsnet publish add blue :80", "by a free port, which is printed"),
        ],
    ),
    ("publish del", &[("nsnet publish del blue 8080:80", "")]),
    ("publish list", &[("nsnet publish list", "with the flows that came of each, as hits")]),
    ("fdb list", &[("nsnet fdb list", "")]),
    ("neigh list", &[("nsnet neigh list", "")]),
    (
        "ct list",
        &[
            ("nsnet ct list", ""),
            ("nsnet ct list --ns red --protocol tcp --state established", ""),
            ("nsnet ct list --destination 192.0.2.0/24 --dport 443 --limit 20", ""),
        ],
    ),
    ("ct flush", &[("nsnet ct flush --ns red", ""), ("nsnet ct flush", "all of them")]),
    (
        "ct watch",
        &[("nsnet ct watch --protocol tcp", ""), ("nsnet -o json ct watch --interval 0.2", "an object in each line")],
    ),
    ("nat list", &[("nsnet nat list", "")]),
    (
        "stats",
        &[
            ("nsnet stats", ""),
            ("nsnet stats --watch", "rates, every second"),
            ("nsnet stats --watch 10 -o json", "for programs, an object in each line"),
        ],
    ),
    ("top", &[("nsnet top", ""), ("nsnet top --interval 0.5", "")]),
    ("drops", &[("nsnet drops", ""), ("nsnet drops --last spoofed-mac", "the last such packet, byte by byte")]),
    (
        "capture",
        &[
            ("nsnet capture", "drops and translations, in lines"),
            ("nsnet capture --ns red --drops -w red.pcapng", "for Wireshark"),
            ("nsnet capture --all --host 192.0.2.7 -w - | tshark -r -", ""),
            ("nsnet capture --nat --port 80 --count 10", ""),
        ],
    ),
    ("plan", &[("nsnet plan -f host.toml", ""), ("nsnet plan", "what was changed behind nsnet's back")]),
    (
        "apply",
        &[
            ("nsnet apply -f host.toml", ""),
            ("nsnet apply", "puts right what was changed behind nsnet's back"),
            ("sed s/blue/green/ host.toml | nsnet apply -f -", ""),
        ],
    ),
    ("schema", &[("nsnet schema > nsnet.schema.json", "")]),
    (
        "explain",
        &[
            ("nsnet explain --from red icmp 192.0.2.7", ""),
            ("nsnet explain --from red tcp 10.0.0.2:5000 192.0.2.7:80 --flags ack", ""),
            ("nsnet explain --from uplink:eth0 udp 198.51.100.9:5353 192.0.2.1:8080", ""),
            ("nsnet explain --from red --pcap red.pcap --frame 3", ""),
            ("xxd -p frame.bin | nsnet explain --from red --hex", ""),
        ],
    ),
    ("status", &[("nsnet status", ""), ("nsnet status -o json", "")]),
    (
        "upgrade",
        &[
            ("nsnet upgrade", "after nsnet itself was replaced by a newer one"),
            ("nsnet upgrade --force", "also when its programs are loaded already"),
        ],
    ),
    ("down", &[("nsnet down", ""), ("nsnet down --host-ns lab", "of the host that the namespace lab is")]),
    (
        "agent",
        &[
            ("nsnet agent", "in the foreground, as systemd wants it"),
            ("nsnet agent --on-drift report --listen 127.0.0.1:9119", ""),
        ],
    ),
    ("doctor", &[("nsnet doctor", "")]),
    #[cfg(feature = "log")]
    ("log", &[("nsnet log", "")]),
    ("bench", &[("nsnet bench --report out", ""), ("nsnet bench --ways ns-to-ns --peers bridge --no-curves", "")]),
    ("demo", &[("nsnet demo", ""), ("nsnet demo --no-comparison", "")]),
    (
        "completions",
        &[
            ("nsnet completions bash > /usr/share/bash-completion/completions/nsnet", ""),
            ("nsnet completions zsh > ~/.zfunc/_nsnet", ""),
            ("nsnet completions fish > ~/.config/fish/completions/nsnet.fish", ""),
        ],
    ),
    ("man", &[("nsnet man | man -l -", ""), ("nsnet man /usr/local/share/man/man8", "a page for each verb")]),
];

/// The grammar, with examples.
pub(super) fn command() -> Command {
    with_examples(Cli::command(), "")
}

fn with_examples(command: Command, verb: &str) -> Command {
    let below: Vec<String> = command.get_subcommands().map(|below| below.get_name().to_owned()).collect();
    let command = below.iter().fold(command, |command, name| {
        command.mut_subcommand(name, |below| with_examples(below, format!("{verb} {name}").trim_start()))
    });
    let examples = of(verb);
    if examples.is_empty() {
        return command;
    }
    let heading = Styles::styled();
    let heading = heading.get_header();
    command.after_help(format!("{heading}Examples:{heading:#}\n{}", lines(&examples)))
}

/// The examples of a verb: its own, or the first of each verb below it.
pub(super) fn of(verb: &str) -> Vec<Example> {
    let own = EXAMPLES.iter().find(|(of, _)| *of == verb).map(|(_, examples)| examples.to_vec());
    let is_below = |of: &str| of.strip_prefix(verb).is_some_and(|rest| rest.starts_with(' '));
    let below = || EXAMPLES.iter().filter(|(of, _)| is_below(of)).filter_map(|(_, examples)| examples.first().copied());
    own.unwrap_or_else(|| below().collect())
}

/// One below the other, and above each what it does.
fn lines(examples: &[Example]) -> String {
    let line = |(line, what): &Example| match *what {
        "" => format!("  {line}"),
        what => format!("  # {what}\n  {line}"),
    };
    examples.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use clap::FromArgMatches as _;

    use super::*;

    /// Every verb, with its full name. clap's own `help` has no examples.
    fn verbs(command: &Command, name: &str, found: &mut Vec<(String, Command)>) {
        found.push((name.to_owned(), command.clone()));
        for below in command.get_subcommands().filter(|below| below.get_name() != "help") {
            verbs(below, format!("{name} {}", below.get_name()).trim_start(), found);
        }
    }

    fn all() -> Vec<(String, Command)> {
        let mut found = Vec::new();
        verbs(&command(), "", &mut found);
        found
    }

    /// The lines of the section of examples, as `--help` prints it.
    fn shown(command: &mut Command) -> Vec<String> {
        let help = command.render_long_help().to_string();
        let section = help.split_once("\nExamples:\n").map(|(_, section)| section.to_owned());
        let section = section.unwrap_or_default();
        let lines = section.lines().map_while(|line| line.strip_prefix("  "));
        lines.filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
    }

    /// The words of `nsnet` in a line of a shell.
    fn words(line: &str) -> Vec<String> {
        let ours = line.split(" | ").find(|part| part.starts_with("nsnet ")).unwrap_or_default();
        let ours = ours.split(" > ").next().unwrap_or_default();
        ours.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn every_verb_has_examples() {
        let without: Vec<String> = all()
            .into_iter()
            .filter(|(_, command)| shown(&mut command.clone()).is_empty())
            .map(|(name, _)| name)
            .collect();
        assert!(without.is_empty(), "verbs without examples: {without:?}");
    }

    #[test]
    fn every_example_can_be_typed_and_is_of_its_verb() {
        let mut count = 0;
        for (name, mut verb) in all() {
            for line in shown(&mut verb) {
                let words = words(&line);
                assert!(!words.is_empty(), "{name}: {line:?} has no nsnet in it");
                let matches = command().try_get_matches_from(&words);
                let matches = matches.unwrap_or_else(|error| panic!("{name}: {line:?}: {error}"));
                Cli::from_arg_matches(&matches).unwrap_or_else(|error| panic!("{name}: {line:?}: {error}"));
                let mut of = String::new();
                let mut at = &matches;
                while let Some((verb, below)) = at.subcommand() {
                    of = format!("{of} {verb}").trim_start().to_owned();
                    at = below;
                }
                assert!(
                    of == name || of.starts_with(&format!("{name} ")) || name.is_empty(),
                    "{name}: {line:?} is of {of}"
                );
                count += 1;
            }
        }
        println!("{count} examples");
        assert!(count > EXAMPLES.len());
    }

    #[test]
    fn no_example_is_of_a_verb_that_is_gone() {
        let verbs: Vec<String> = all().into_iter().map(|(name, _)| name).collect();
        for (verb, examples) in EXAMPLES {
            assert!(verbs.iter().any(|known| known == verb), "there is no `nsnet {verb}`");
            assert!(!examples.is_empty(), "{verb}");
        }
    }

    #[test]
    fn what_a_line_does_is_above_it() {
        assert_eq!(lines(&[("nsnet a", "one"), ("nsnet b", "")]), "  # one\n  nsnet a\n  nsnet b");
    }

    #[test]
    fn no_line_is_broken_on_a_terminal() {
        for (verb, examples) in EXAMPLES {
            assert!(lines(examples).lines().all(|line| line.len() < 80), "{verb}");
        }
    }
}

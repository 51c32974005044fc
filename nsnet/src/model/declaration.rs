//! A file of `nsnet plan` and `nsnet apply`: everything that is to be there, in TOML, one array of tables for each verb.

use std::ops::Range;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_path_to_error::Segment;
use toml::Spanned;

use super::request::{AttachRequest, CableRequest, NetworkRequest, NsRequest, PublishArgs, RouteRequest};
use super::{Result, refuse};

/// What is to be there, and nothing else: what is not in the file is taken away. A file that declares nothing is refused.
///
/// What a table leaves out is chosen, and stays as it was chosen. The order of tables does not matter.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(title = "nsnet")]
pub struct Declaration {
    /// Namespaces, as of `nsnet ns add`
    #[schemars(with = "Vec<NsRequest>")]
    pub ns: Vec<Spanned<NsRequest>>,
    /// Networks, as of `nsnet network add`
    #[schemars(with = "Vec<NetworkRequest>")]
    pub network: Vec<Spanned<NetworkRequest>>,
    /// Which namespace is in which network, as of `nsnet attach`
    #[schemars(with = "Vec<AttachRequest>")]
    pub attach: Vec<Spanned<AttachRequest>>,
    /// Cables between namespaces, as of `nsnet cable add`
    #[schemars(with = "Vec<CableRequest>")]
    pub cable: Vec<Spanned<CableRequest>>,
    /// Routes in namespaces, as of `nsnet route add`
    #[schemars(with = "Vec<RouteRequest>")]
    pub route: Vec<Spanned<RouteRequest>>,
    /// Published ports, as of `nsnet publish add`
    #[schemars(with = "Vec<PublishArgs>")]
    pub publish: Vec<Spanned<PublishArgs>>,
    /// Where the lines of the file begin.
    #[serde(skip)]
    lines: Vec<usize>,
}

impl Declaration {
    /// Reads a file. A refusal names the line and the key, and says what to do.
    pub fn read(text: &str) -> Result<Self> {
        let lines: Vec<usize> = text.match_indices('\n').map(|(at, _)| at + 1).collect();
        let at = |span: Option<Range<usize>>| {
            span.map(|span| format!("line {}: ", line_of(&lines, span.start))).unwrap_or_default()
        };
        let deserializer = match toml::Deserializer::parse(text) {
            Ok(deserializer) => deserializer,
            Err(error) => {
                let here = error.span().and_then(|span| text.get(span)).unwrap_or_default().trim();
                return refuse(format_args!("{}{}", at(error.span()), about_syntax(error.message(), here)));
            }
        };
        match serde_path_to_error::deserialize::<_, Self>(deserializer) {
            // A program that was to write it and failed must not take the host down.
            Ok(declaration) if declaration.is_empty() => {
                refuse("it declares nothing; `nsnet down` takes everything down")
            }
            Ok(declaration) => Ok(Self { lines, ..declaration }),
            Err(error) => {
                let (table, key) = place(error.path());
                let error = error.into_inner();
                let what = about_content(error.message(), table.as_deref(), key.as_deref());
                refuse(format_args!("{}{what}", at(error.span())))
            }
        }
    }

    fn is_empty(&self) -> bool {
        let Self { ns, network, attach, cable, route, publish, lines: _ } = self;
        ns.is_empty()
            && network.is_empty()
            && attach.is_empty()
            && cable.is_empty()
            && route.is_empty()
            && publish.is_empty()
    }

    /// The JSON schema of such a file.
    pub fn schema() -> serde_json::Value {
        schemars::schema_for!(Self).to_value()
    }

    /// The line that a table begins in.
    pub(super) fn line<T>(&self, table: &Spanned<T>) -> usize {
        line_of(&self.lines, table.span().start)
    }
}

/// The number of the line, from 1, that a byte is in.
fn line_of(lines: &[usize], at: usize) -> usize {
    lines.partition_point(|begin| *begin <= at) + 1
}

/// The table and the key that a path leads to.
fn place(path: &serde_path_to_error::Path) -> (Option<String>, Option<String>) {
    // Places in the file are a wrapper of their own around each table.
    let mut names = path.iter().filter_map(|segment| match segment {
        Segment::Map { key } if !key.starts_with("$__") => Some(key.clone()),
        Segment::Map { .. } | Segment::Seq { .. } | Segment::Enum { .. } | Segment::Unknown => None,
    });
    (names.next(), names.next())
}

fn about_syntax(message: &str, here: &str) -> String {
    match message {
        "duplicate key" => format!("the key {here} is there twice; delete one"),
        other => format!("this is no TOML: {other}"),
    }
}

/// What is wrong with a table or key, from serde's words.
fn about_content(message: &str, table: Option<&str>, key: Option<&str>) -> String {
    let table_name = table.unwrap_or_default();
    let mut named = message.split('`').skip(1).step_by(2);
    if message.starts_with("unknown field") {
        let (unknown, known): (&str, Vec<&str>) = (named.next().unwrap_or_default(), named.collect());
        let meant = nearest(unknown, &known).map(|meant| format!(", did you mean {meant}?")).unwrap_or_default();
        let known = known.join(", ");
        return match key {
            Some(_) => format!("[[{table_name}]] has no key {unknown}{meant} (keys: {known})"),
            None => format!("there is no table {unknown}{meant} (tables: {known})"),
        };
    }
    if message.starts_with("missing field") {
        let missing = named.next().unwrap_or_default();
        return format!("[[{table_name}]] lacks the key {missing}; add {missing} = ...");
    }
    let Some(key) = key else {
        return format!("{table_name}: {message}; write [[{table_name}]], in two pairs of brackets");
    };
    let remedy = match () {
        () if message.ends_with("expected a string") => "; write it in quotes",
        () if message.ends_with("expected a boolean") => "; write true or false, without quotes",
        () if message.ends_with("expected u16") => "; write a number up to 65535, without quotes",
        () if message.ends_with("expected a nonzero u32") => "; write a number from 1 on, without quotes",
        () => "",
    };
    format!("{key} in [[{table_name}]]: {message}{remedy}")
}

/// What was meant by a name that is none.
fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let similar = known.iter().map(|known| (strsim::jaro_winkler(name, known), *known));
    let (likeness, best) = similar.max_by(|one, other| one.0.total_cmp(&other.0))?;
    (likeness > 0.8).then_some(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        let network = "[[network]]\nname = \"n\"\nsubnet = \"10.0.0.0/24\"\n";
        for (text, words) in [
            (
                "[[ns]]\nname = \"red\"\n\n[[ns]]\nnam = \"x\"\n",
                "line 5: [[ns]] has no key nam, did you mean name? (keys: name)",
            ),
            ("\n[[nss]]\nname = \"r\"\n", "line 2: there is no table nss, did you mean ns? (tables: ns, network"),
            ("x = 1", "line 1: there is no table x (tables: ns"),
            (
                "[[ns]]\nname = 1\n",
                "line 2: name in [[ns]]: invalid type: integer `1`, expected a string; write it in quotes",
            ),
            ("[[ns]]\nname = \"a\"\n[[ns]]\n", "line 3: [[ns]] lacks the key name; add name = ..."),
            ("[[ns]]\nname = \"a\"\nname = \"b\"\n", "line 3: the key name is there twice; delete one"),
            ("[ns]\nname = \"a\"\n", "line 1: ns: invalid type: map, expected a sequence; write [[ns]], in two pairs"),
            ("[[ns]]\nname = \"a\n", "line 2: this is no TOML: "),
            ("[[ns]]\nname = \"a/b\"\n", "line 2: name in [[ns]]: \"a/b\": a name is 1 to 15"),
            (
                "[[network]]\nname = \"n\"\nsubnet = [\n\"10.0.0.0/24\",\n\"x\"]\n",
                "line 5: subnet in [[network]]: \"x\": say an address and a prefix length",
            ),
            (
                "[[network]]\nname = \"n\"\nsubnet = 5\n",
                "line 3: subnet in [[network]]: invalid type: integer `5`, expected a string, or",
            ),
            (
                "[[network]]\nname = \"n\"\nsubnet = [5]\n",
                "line 3: subnet in [[network]]: invalid type: integer `5`, expected a string;",
            ),
            (
                &format!("{network}mtu = -1"),
                "line 4: mtu in [[network]]: invalid value: integer `-1`, expected u16; write a",
            ),
            (
                &format!("{network}mtu = \"1500\""),
                "line 4: mtu in [[network]]: invalid type: string \"1500\", expected u16",
            ),
            (&format!("{network}flows_per_ns = 0"), "line 4: flows_per_ns in [[network]]: invalid value: integer `0`"),
            (&format!("{network}masquerade = \"yes\""), "line 4: masquerade in [[network]]: invalid type"),
            (&format!("{network}filtering = \"none\""), "line 4: filtering in [[network]]: unknown variant `none`"),
            (&format!("{network}timeout = [\"udp=0\"]"), "line 4: timeout in [[network]]: \"udp=0\""),
            (
                &format!("{network}snat-ports = \"1-2\""),
                "line 4: [[network]] has no key snat-ports, did you mean snat_ports?",
            ),
            (&format!("{network}snat_ports = \"2-1\""), "line 4: snat_ports in [[network]]: a range of ports begins"),
            (
                "[[attach]]\nnetwork = \"n\"\nns = \"r\"\nmac = \"zz\"\n",
                "line 4: mac in [[attach]]: a MAC is six pairs",
            ),
            ("[[route]]\nns = \"r\"\ndest = \"zz\"\n", "line 3: dest in [[route]]: say a prefix"),
            (
                "[[route]]\nns = \"r\"\ndest = \"10.60.1.1/16\"\n",
                "line 3: dest in [[route]]: it has bits set after the prefix; say 10.60.0.0/16",
            ),
            (
                "[[route]]\nns = \"r\"\ndest = \"default\"\nword = \"via\"\n",
                "line 4: [[route]] has no key word (keys: ns, dest, via)",
            ),
            ("[[publish]]\nns = \"r\"\nport = \"zz\"\n", "line 3: port in [[publish]]: \"zz\": a port is a number"),
            (
                "[[cable]]\na = \"r\"\nb = \"s\"\naddress_a = \"10.0.0.1\"\n",
                "line 4: address_a in [[cable]]: \"10.0.0.1\": the prefix length is missing; say 10.0.0.1/24",
            ),
        ] {
            let refusal = Declaration::read(text).unwrap_err().to_string();
            assert!(refusal.starts_with(words), "{text:?}: {refusal}");
            assert!(!refusal.contains("$__") && !refusal.contains('\n'), "{refusal}");
        }
    }

    #[test]
    fn tables_begin_in_their_lines() {
        let text = "\n[[ns]]\n\n\nname=\"a\"\n [[ns]]\nname=\"b\"\n[[publish]]\nns=\"a\"\nport=[\"80\", \"81:81\"]\n";
        let read = Declaration::read(text).unwrap();
        assert_eq!(read.ns.iter().map(|ns| read.line(ns)).collect::<Vec<_>>(), [2, 6]);
        assert_eq!(read.line(&read.publish[0]), 8);
        assert_eq!(read.publish[0].get_ref().port.len(), 2);
    }

    #[test]
    fn nothing_is_no_declaration() {
        for text in ["", "\n", "# host.toml\n", "ns = []\nnetwork = []\n"] {
            let refusal = Declaration::read(text).unwrap_err().to_string();
            assert_eq!(refusal, "it declares nothing; `nsnet down` takes everything down", "{text:?}");
        }
    }

    #[test]
    fn the_schema_knows_every_key() {
        let schema = Declaration::schema();
        let tables = schema["properties"].as_object().unwrap();
        assert_eq!(tables.keys().collect::<Vec<_>>(), ["attach", "cable", "network", "ns", "publish", "route"]);
        let network = &schema["$defs"]["NetworkRequest"];
        assert_eq!(network["additionalProperties"], false);
        assert_eq!(network["required"], serde_json::json!(["name", "subnet"]));
        assert_eq!(network["properties"]["isolate"]["default"], true);
        assert!(network["properties"]["name"]["pattern"].is_string());
        let several = |table: &str, key: &str| schema["$defs"][table]["properties"][key]["anyOf"][1].clone();
        for (table, key, least) in [
            ("NetworkRequest", "subnet", 1.into()),
            ("PublishArgs", "port", 1.into()),
            ("AttachRequest", "ip", serde_json::Value::Null),
        ] {
            assert_eq!(several(table, key)["minItems"], least, "{key}");
        }
        assert_eq!(schema["$defs"]["CableRequest"]["required"], serde_json::json!(["a", "b"]));
        assert!(schema["$defs"]["RouteRequest"]["properties"]["word"].is_null());
    }
}

//! Texts in a file: how they are read, and what the schema says of them.

use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;

use ipnet::IpNet;
use nsnet_common::wire::Mac;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserialize as _, Deserializer, Error, SeqAccess, Visitor};

use super::{Dest, prefix as prefix_of};
use crate::model::name::Name;
use crate::model::policy::UplinkChoice;
use crate::model::ports::PortRange;
use crate::model::state::mac_text;

/// One text, or an array of texts.
pub(super) fn one_or_more<'de, D: Deserializer<'de>, T: FromStr<Err: fmt::Display>>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    deserializer.deserialize_any(Texts(PhantomData))
}

struct Texts<T>(PhantomData<T>);

impl<'de, T: FromStr<Err: fmt::Display>> Visitor<'de> for Texts<T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, or an array of strings")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Vec<T>, E> {
        Ok(vec![parse(text)?])
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut texts: A) -> Result<Vec<T>, A::Error> {
        let mut values = Vec::new();
        while let Some(Text(value)) = texts.next_element::<Text<T>>()? {
            values.push(value);
        }
        Ok(values)
    }
}

/// A text that says a `T`.
struct Text<T>(T);

impl<'de, T: FromStr<Err: fmt::Display>> serde::Deserialize<'de> for Text<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // By a visitor, and not from a String: only what fails inside of the deserializer is given its place in the file.
        deserializer.deserialize_str(OneText(PhantomData)).map(Self)
    }
}

struct OneText<T>(PhantomData<T>);

impl<T: FromStr<Err: fmt::Display>> Visitor<'_> for OneText<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        parse(text)
    }
}

fn parse<T: FromStr<Err: fmt::Display>, E: Error>(text: &str) -> Result<T, E> {
    text.parse().map_err(|error| E::custom(format_args!("{text:?}: {error}")))
}

/// An address with a prefix length.
struct Prefix(IpNet);

impl FromStr for Prefix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        prefix_of(text).map(Self)
    }
}

pub(super) fn subnets<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<IpNet>, D::Error> {
    Ok(one_or_more::<D, Prefix>(deserializer)?.into_iter().map(|Prefix(net)| net).collect())
}

/// One that may be left out.
pub(super) fn with_prefix<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<IpNet>, D::Error> {
    let Text(Prefix(net)) = Text::deserialize(deserializer)?;
    Ok(Some(net))
}

/// A MAC that may be left out.
pub(super) fn mac<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Mac>, D::Error> {
    mac_text::parse(&String::deserialize(deserializer)?).map(Some).map_err(Error::custom)
}

fn several(of: &Schema) -> Schema {
    json_schema!({ "anyOf": [of, { "type": "array", "items": of }] })
}

fn at_least_one(of: &Schema) -> Schema {
    json_schema!({ "anyOf": [of, { "type": "array", "items": of, "minItems": 1 }] })
}

fn text(pattern: &str, example: &str) -> Schema {
    json_schema!({ "type": "string", "pattern": pattern, "examples": [example] })
}

pub(super) fn prefix(_: &mut SchemaGenerator) -> Schema {
    text("^[0-9a-fA-F:.]+/[0-9]{1,3}$", "192.168.15.0/24")
}

pub(super) fn prefixes(generator: &mut SchemaGenerator) -> Schema {
    at_least_one(&prefix(generator))
}

pub(super) fn addresses(_: &mut SchemaGenerator) -> Schema {
    several(&text("^[0-9a-fA-F:.]+$", "192.168.15.1"))
}

pub(super) fn timeouts(_: &mut SchemaGenerator) -> Schema {
    several(&text("^(tcp-established|tcp-transitory|udp|dns|icmp|other)=[0-9]+$", "udp=300"))
}

pub(super) fn specs(_: &mut SchemaGenerator) -> Schema {
    at_least_one(&text(r"^(([0-9.]+|\[[0-9a-fA-F:]+\]):)?([0-9-]*:)?[0-9]+(-[0-9]+)?(/[a-zA-Z]+)?$", "8080:80/tcp"))
}

pub(super) fn mac_schema(_: &mut SchemaGenerator) -> Schema {
    text("^([0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}$", "02:00:00:00:00:01")
}

/// The schema of a type that is a text.
macro_rules! is_text {
    ($type:ty, $name:literal, $pattern:expr, $example:expr) => {
        impl JsonSchema for $type {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                $name.into()
            }

            fn inline_schema() -> bool {
                true
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                text($pattern, $example)
            }
        }
    };
}

is_text!(Name, "Name", "^[A-Za-z0-9][A-Za-z0-9_.-]{0,14}$", "red");
is_text!(UplinkChoice, "Uplink", r"^[^/:\s]{1,15}$", "auto");
is_text!(PortRange, "Ports", "^[0-9]{1,5}(-[0-9]{1,5})?$", "16384-32767");
is_text!(Dest, "Destination", "^(default|[0-9a-fA-F:.]+(/[0-9]{1,3})?)$", "default");

//! Properties of MQTT 5.0 (2.2.2): one table, one validator, and the validated bytes kept as they came.

use bytes::{BufMut, Bytes, BytesMut};
use rocketbridge_session::Cursor;

use super::text::{has_wildcard, is_string};
use super::{DecodeError, PacketType, Side, put_variable, take_variable};

/// Where properties stand: a packet, or the will inside CONNECT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A packet's own properties.
    Packet(PacketType),
    /// The will properties of CONNECT.
    Will,
}

impl Place {
    const fn bit(self) -> u16 {
        match self {
            // No packet has type 0.
            Self::Will => 1,
            Self::Packet(packet_type) => 1 << packet_type as u16,
        }
    }
}

/// How a property's value is encoded (5.0, 1.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Byte,
    Flag,
    Two,
    Four,
    Variable,
    Text,
    Binary,
    Pair,
}

macro_rules! properties {
    ($($name:ident = $id:literal $kind:ident [$($place:ident)*],)*) => {
        /// A property's identifier.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum PropertyId { $($name = $id,)* }

        impl PropertyId {
            const fn from_u8(id: u8) -> Option<Self> {
                match id {
                    $($id => Some(Self::$name),)*
                    _ => None,
                }
            }

            const fn kind(self) -> Kind {
                match self { $(Self::$name => Kind::$kind,)* }
            }

            /// Bits of the places where it may stand.
            const fn places(self) -> u16 {
                match self { $(Self::$name => 0 $(| place::$place)*,)* }
            }
        }
    };
}

#[allow(non_upper_case_globals)]
mod place {
    use super::{PacketType, Place};

    pub const Will: u16 = Place::Will.bit();
    pub const Connect: u16 = Place::Packet(PacketType::Connect).bit();
    pub const ConnAck: u16 = Place::Packet(PacketType::ConnAck).bit();
    pub const Publish: u16 = Place::Packet(PacketType::Publish).bit();
    pub const Subscribe: u16 = Place::Packet(PacketType::Subscribe).bit();
    pub const Disconnect: u16 = Place::Packet(PacketType::Disconnect).bit();
    pub const Auth: u16 = Place::Packet(PacketType::Auth).bit();
    /// PUBACK, PUBREC, PUBREL, PUBCOMP, SUBACK, UNSUBACK.
    pub const Acks: u16 = Place::Packet(PacketType::PubAck).bit()
        | Place::Packet(PacketType::PubRec).bit()
        | Place::Packet(PacketType::PubRel).bit()
        | Place::Packet(PacketType::PubComp).bit()
        | Place::Packet(PacketType::SubAck).bit()
        | Place::Packet(PacketType::UnsubAck).bit();
    pub const Any: u16 = !(Place::Packet(PacketType::PingReq).bit() | Place::Packet(PacketType::PingResp).bit());
}

properties! {
    PayloadFormat = 0x01 Flag [Publish Will],
    MessageExpiry = 0x02 Four [Publish Will],
    ContentType = 0x03 Text [Publish Will],
    ResponseTopic = 0x08 Text [Publish Will],
    CorrelationData = 0x09 Binary [Publish Will],
    SubscriptionIdentifier = 0x0B Variable [Publish Subscribe],
    SessionExpiry = 0x11 Four [Connect ConnAck Disconnect],
    AssignedClientIdentifier = 0x12 Text [ConnAck],
    ServerKeepAlive = 0x13 Two [ConnAck],
    AuthenticationMethod = 0x15 Text [Connect ConnAck Auth],
    AuthenticationData = 0x16 Binary [Connect ConnAck Auth],
    RequestProblemInformation = 0x17 Flag [Connect],
    WillDelay = 0x18 Four [Will],
    RequestResponseInformation = 0x19 Flag [Connect],
    ResponseInformation = 0x1A Text [ConnAck],
    ServerReference = 0x1C Text [ConnAck Disconnect],
    ReasonString = 0x1F Text [ConnAck Acks Disconnect Auth],
    ReceiveMaximum = 0x21 Two [Connect ConnAck],
    TopicAliasMaximum = 0x22 Two [Connect ConnAck],
    TopicAlias = 0x23 Two [Publish],
    MaximumQos = 0x24 Byte [ConnAck],
    RetainAvailable = 0x25 Flag [ConnAck],
    UserProperty = 0x26 Pair [Any],
    MaximumPacketSize = 0x27 Four [Connect ConnAck],
    WildcardSubscriptionAvailable = 0x28 Flag [ConnAck],
    SubscriptionIdentifierAvailable = 0x29 Flag [ConnAck],
    SharedSubscriptionAvailable = 0x2A Flag [ConnAck],
}

/// A property's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PropertyValue<'a> {
    /// A number, of whatever width.
    Number(u32),
    /// A UTF-8 string.
    Text(&'a [u8]),
    /// Binary data.
    Binary(&'a [u8]),
    /// A pair of UTF-8 strings.
    Pair(&'a [u8], &'a [u8]),
}

/// One property, with the bytes it came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Property<'a> {
    /// Which.
    pub id: PropertyId,
    /// Its value.
    pub value: PropertyValue<'a>,
    /// Identifier and value as encoded.
    pub encoded: &'a [u8],
}

/// Validated properties: the encoded bytes, without the length in front, and which there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Properties {
    bytes: Bytes,
    present: u64,
}

impl Properties {
    /// No properties at all.
    pub const EMPTY: Self = Self {
        bytes: Bytes::new(),
        present: 0,
    };

    /// Checks encoded properties for the place where they stand. `side` is who receives them.
    ///
    /// # Errors
    /// [`DecodeError::Malformed`] when they cannot be read; else [`DecodeError::Protocol`] when one may
    /// not stand here, stands twice, or has a value that its definition forbids.
    pub fn check(bytes: Bytes, place: Place, side: Side) -> Result<Self, DecodeError> {
        if bytes.is_empty() {
            return Ok(Self::EMPTY);
        }
        let mut present = 0u64;
        let mut error = None;
        let mut cursor = Cursor::new(&bytes);
        while cursor.remaining() > 0 {
            let property = take_property(&mut cursor)?;
            let bit = 1 << property.id as u8;
            // What cannot be read outranks what is not allowed, so all of it is read first.
            let fault = if property.id.places() & place.bit() == 0 {
                Some(NOT_ALLOWED_HERE)
            } else if present & bit != 0 && !may_repeat(property.id, place, side) {
                Some("property twice")
            } else {
                value_fault(property)
            };
            error = error.or(fault);
            present |= bit;
        }
        match error {
            // SUBSCRIBE and UNSUBSCRIBE: Mosquitto answers 0x81, and its test vectors ask for it.
            Some(NOT_ALLOWED_HERE | ZERO_IDENTIFIER)
                if matches!(place, Place::Packet(PacketType::Subscribe | PacketType::Unsubscribe)) =>
            {
                Err(DecodeError::Malformed("property not allowed"))
            }
            Some(what) => Err(DecodeError::Protocol(what)),
            None => Ok(Self { bytes, present }),
        }
    }

    /// The encoded bytes, without the length in front.
    pub fn as_bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Whether there is one of that identifier.
    pub fn has(&self, id: PropertyId) -> bool {
        self.present & 1 << id as u8 != 0
    }

    /// The first value of that identifier.
    pub fn find(&self, id: PropertyId) -> Option<PropertyValue<'_>> {
        if !self.has(id) {
            return None;
        }
        self.iter()
            .find(|property| property.id == id)
            .map(|property| property.value)
    }

    /// The first value of that identifier, which is a number.
    pub fn number(&self, id: PropertyId) -> Option<u32> {
        match self.find(id)? {
            PropertyValue::Number(number) => Some(number),
            _ => None,
        }
    }

    /// Walks all properties.
    pub fn iter(&self) -> PropertyIter<'_> {
        PropertyIter::new(&self.bytes)
    }
}

const NOT_ALLOWED_HERE: &str = "property not allowed in this packet";
const ZERO_IDENTIFIER: &str = "subscription identifier 0";

/// Walks encoded properties. Stops at the first byte that is not part of one.
#[derive(Clone, Debug)]
pub struct PropertyIter<'a> {
    cursor: Cursor<'a>,
}

impl<'a> PropertyIter<'a> {
    /// Walks encoded properties, which need not have been checked.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self {
            cursor: Cursor::new(bytes),
        }
    }
}

impl<'a> Iterator for PropertyIter<'a> {
    type Item = Property<'a>;

    fn next(&mut self) -> Option<Property<'a>> {
        if self.cursor.remaining() == 0 {
            return None;
        }
        let property = take_property(&mut self.cursor).ok();
        if property.is_none() {
            self.cursor = Cursor::new(&[]);
        }
        property
    }
}

fn may_repeat(id: PropertyId, place: Place, side: Side) -> bool {
    match id {
        PropertyId::UserProperty => true,
        // One for each subscription that matched; a client sends none at all.
        PropertyId::SubscriptionIdentifier => side == Side::Client && place == Place::Packet(PacketType::Publish),
        _ => false,
    }
}

fn value_fault(property: Property<'_>) -> Option<&'static str> {
    match (property.id, property.value) {
        (id, PropertyValue::Number(number)) => match (id, id.kind()) {
            (_, Kind::Flag) | (PropertyId::MaximumQos, _) if number > 1 => Some("value is neither 0 nor 1"),
            (PropertyId::ReceiveMaximum | PropertyId::MaximumPacketSize, _) if number == 0 => Some("value is 0"),
            (PropertyId::SubscriptionIdentifier, _) if number == 0 => Some(ZERO_IDENTIFIER),
            _ => None,
        },
        (PropertyId::ResponseTopic, PropertyValue::Text(topic)) if has_wildcard(topic) => {
            Some("wildcard in the response topic")
        }
        _ => None,
    }
}

fn take_property<'a>(cursor: &mut Cursor<'a>) -> Result<Property<'a>, DecodeError> {
    let start = cursor.rest();
    // All identifiers are below 0x80, so a longer variable byte integer is none.
    let id = PropertyId::from_u8(cursor.u8()?).ok_or(DecodeError::Malformed("unknown property"))?;
    let value = match id.kind() {
        Kind::Byte | Kind::Flag => PropertyValue::Number(u32::from(cursor.u8()?)),
        Kind::Two => PropertyValue::Number(u32::from(cursor.u16()?)),
        Kind::Four => PropertyValue::Number(cursor.u32()?),
        Kind::Variable => PropertyValue::Number(take_variable(cursor)?),
        Kind::Text => PropertyValue::Text(take_string(cursor)?),
        Kind::Binary => PropertyValue::Binary(cursor.bytes16()?),
        Kind::Pair => PropertyValue::Pair(take_string(cursor)?, take_string(cursor)?),
    };
    Ok(Property {
        id,
        value,
        encoded: &start[..start.len() - cursor.remaining()],
    })
}

fn take_string<'a>(cursor: &mut Cursor<'a>) -> Result<&'a [u8], DecodeError> {
    let text = cursor.bytes16()?;
    if !is_string(text) {
        return Err(DecodeError::Malformed("a string that is not UTF-8"));
    }
    Ok(text)
}

/// Appends a numeric property in the width that its definition says.
pub fn put_number(out: &mut BytesMut, id: PropertyId, number: u32) {
    out.put_u8(id as u8);
    match id.kind() {
        Kind::Byte | Kind::Flag => out.put_u8(number as u8),
        Kind::Two => out.put_u16(number as u16),
        Kind::Four => out.put_u32(number),
        Kind::Variable => put_variable(out, number),
        Kind::Text | Kind::Binary | Kind::Pair => debug_assert!(false, "{id:?} is not a number"),
    }
}

/// Appends a text or binary property. The caller has made sure that it is at most 65,535 bytes.
pub fn put_bytes(out: &mut BytesMut, id: PropertyId, bytes: &[u8]) {
    debug_assert!(matches!(id.kind(), Kind::Text | Kind::Binary));
    out.put_u8(id as u8);
    super::put_bytes16(out, bytes);
}

/// Appends a user property. The caller has made sure that both are strings of at most 65,535 bytes.
pub fn put_user_property(out: &mut BytesMut, name: &[u8], value: &[u8]) {
    out.put_u8(PropertyId::UserProperty as u8);
    super::put_bytes16(out, name);
    super::put_bytes16(out, value);
}

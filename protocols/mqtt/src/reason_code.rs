//! Reason codes of MQTT 5.0 (2.4), the return codes that MQTT 3.1.1 has instead, and the one table that
//! says what core's answers become.

use rocketbridge_core::boundary::{Fate, Reject};
use rocketbridge_core::request::Refusal;

use crate::codec::PacketType;

macro_rules! reason_codes {
    ($($(#[$doc:meta])* $name:ident = $value:literal,)*) => {
        /// A one-byte reason code. Values from 0x80 on are failures.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum ReasonCode { $($(#[$doc])* $name = $value,)* }

        impl ReasonCode {
            /// The code of that value, if there is one.
            pub const fn from_u8(value: u8) -> Option<Self> {
                match value {
                    $($value => Some(Self::$name),)*
                    _ => None,
                }
            }
        }
    };
}

reason_codes! {
    /// Also "normal disconnection" and "granted QoS 0".
    Success = 0x00,
    GrantedQos1 = 0x01,
    GrantedQos2 = 0x02,
    DisconnectWithWill = 0x04,
    NoMatchingSubscribers = 0x10,
    NoSubscriptionExisted = 0x11,
    ContinueAuthentication = 0x18,
    Reauthenticate = 0x19,
    UnspecifiedError = 0x80,
    MalformedPacket = 0x81,
    ProtocolError = 0x82,
    ImplementationSpecificError = 0x83,
    UnsupportedProtocolVersion = 0x84,
    ClientIdentifierNotValid = 0x85,
    BadUserNameOrPassword = 0x86,
    NotAuthorized = 0x87,
    ServerUnavailable = 0x88,
    ServerBusy = 0x89,
    Banned = 0x8A,
    ServerShuttingDown = 0x8B,
    BadAuthenticationMethod = 0x8C,
    KeepAliveTimeout = 0x8D,
    SessionTakenOver = 0x8E,
    TopicFilterInvalid = 0x8F,
    TopicNameInvalid = 0x90,
    PacketIdentifierInUse = 0x91,
    PacketIdentifierNotFound = 0x92,
    ReceiveMaximumExceeded = 0x93,
    TopicAliasInvalid = 0x94,
    PacketTooLarge = 0x95,
    MessageRateTooHigh = 0x96,
    QuotaExceeded = 0x97,
    AdministrativeAction = 0x98,
    PayloadFormatInvalid = 0x99,
    RetainNotSupported = 0x9A,
    QosNotSupported = 0x9B,
    UseAnotherServer = 0x9C,
    ServerMoved = 0x9D,
    SharedSubscriptionsNotSupported = 0x9E,
    ConnectionRateExceeded = 0x9F,
    MaximumConnectTime = 0xA0,
    SubscriptionIdentifiersNotSupported = 0xA1,
    WildcardSubscriptionsNotSupported = 0xA2,
}

impl ReasonCode {
    /// Whether it says that something was not done.
    pub const fn is_failure(self) -> bool {
        self as u8 >= 0x80
    }

    /// Whether an acknowledgement of that type may carry it (5.0, tables of 3.4.2.1 to 3.7.2.1). Other
    /// packet types carry any.
    pub const fn is_allowed_in(self, packet_type: PacketType) -> bool {
        match packet_type {
            PacketType::PubAck | PacketType::PubRec => {
                matches!(self as u8, 0x00 | 0x10 | 0x80 | 0x83 | 0x87 | 0x90 | 0x91 | 0x97 | 0x99)
            }
            PacketType::PubRel | PacketType::PubComp => matches!(self as u8, 0x00 | 0x92),
            PacketType::Auth => matches!(self as u8, 0x00 | 0x18 | 0x19),
            _ => true,
        }
    }

    /// The CONNACK return code of MQTT 3.1 and 3.1.1 (3.2.2.3) that comes nearest.
    pub const fn connect_return_code(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::UnsupportedProtocolVersion => 1,
            Self::ClientIdentifierNotValid => 2,
            Self::BadUserNameOrPassword => 4,
            Self::NotAuthorized | Self::Banned | Self::BadAuthenticationMethod => 5,
            _ => 3,
        }
    }

    /// What a refused request becomes.
    pub fn of_refusal(refusal: &Refusal) -> Self {
        match refusal {
            Refusal::AccessRefused => Self::NotAuthorized,
            Refusal::Invalid(_) => Self::QuotaExceeded,
            Refusal::NotSupported(_) => Self::ImplementationSpecificError,
            Refusal::Closed => Self::ServerShuttingDown,
            Refusal::NotFound { .. }
            | Refusal::Locked
            | Refusal::InUse
            | Refusal::SingleActive
            | Refusal::NotEmpty
            | Refusal::Ended
            | Refusal::LeaseEnded
            | Refusal::Rejected { .. }
            | Refusal::NoSubscription => Self::UnspecifiedError,
        }
    }

    /// What a publish's fate becomes in PUBACK; `None` when nobody knows it or the broker goes down, and
    /// only silence makes the client send again.
    pub fn of_fate(fate: &Fate) -> Option<Self> {
        Some(match fate {
            Fate::Stored(stored) if stored.routes == 0 => Self::NoMatchingSubscribers,
            Fate::Stored(_) | Fate::Duplicate(_) => Self::Success,
            Fate::Rejected(reject) => match reject {
                Reject::AccessRefused => Self::NotAuthorized,
                Reject::NoTopic => Self::TopicNameInvalid,
                Reject::QueueFull | Reject::TooLarge | Reject::TooLate | Reject::Shortage(_) => Self::QuotaExceeded,
                Reject::Closed => return None,
                Reject::NoExchange | Reject::InternalExchange | Reject::NoQueue => Self::ImplementationSpecificError,
            },
            Fate::Unknown => return None,
        })
    }
}

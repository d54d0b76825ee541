//! Request codes, by RocketMQ's names.

/// One message, long field names.
pub const SEND_MESSAGE: i32 = 10;
/// Messages of one message queue from an offset on.
pub const PULL_MESSAGE: i32 = 11;
/// A group's committed offset.
pub const QUERY_CONSUMER_OFFSET: i32 = 14;
/// Commits a group's offset.
pub const UPDATE_CONSUMER_OFFSET: i32 = 15;
/// The first offset at or after a time.
pub const SEARCH_OFFSET_BY_TIMESTAMP: i32 = 29;
/// The next offset of a message queue.
pub const GET_MAX_OFFSET: i32 = 30;
/// The first offset of a message queue.
pub const GET_MIN_OFFSET: i32 = 31;
/// One message by its place in the log.
pub const VIEW_MESSAGE_BY_ID: i32 = 33;
/// Who a client is and what it subscribes.
pub const HEART_BEAT: i32 = 34;
/// A client leaves.
pub const UNREGISTER_CLIENT: i32 = 35;
/// A consumer gives a message back to be tried again later.
pub const CONSUMER_SEND_MSG_BACK: i32 = 36;
/// Commit or rollback of a half message.
pub const END_TRANSACTION: i32 = 37;
/// The members of a consumer group.
pub const GET_CONSUMER_LIST_BY_GROUP: i32 = 38;
/// To producers: has that transaction been committed?
pub const CHECK_TRANSACTION_STATE: i32 = 39;
/// To clients: members of a group changed.
pub const NOTIFY_CONSUMER_IDS_CHANGED: i32 = 40;
/// Locks message queues for orderly consumption.
pub const LOCK_BATCH_MQ: i32 = 41;
/// Unlocks them.
pub const UNLOCK_BATCH_MQ: i32 = 42;
/// Whether the broker can filter as the client wants.
pub const CHECK_CLIENT_CONFIG: i32 = 46;
/// A name server's key and value.
pub const GET_KV_CONFIG: i32 = 101;
/// Where a topic's message queues are.
pub const GET_ROUTEINFO_BY_TOPIC: i32 = 105;
/// All brokers and clusters.
pub const GET_BROKER_CLUSTER_INFO: i32 = 106;
/// Makes or changes a consumer group.
pub const UPDATE_AND_CREATE_SUBSCRIPTION_GROUP: i32 = 200;
/// A group's consumers are to go on from another time or offset.
pub const INVOKE_BROKER_TO_RESET_OFFSET: i32 = 222;
/// One message, one-letter field names.
pub const SEND_MESSAGE_V2: i32 = 310;
/// Several messages, one-letter field names.
pub const SEND_BATCH_MESSAGE: i32 = 320;
/// The answer of a request-reply pair.
pub const SEND_REPLY_MESSAGE: i32 = 324;
/// The same with one-letter field names.
pub const SEND_REPLY_MESSAGE_V2: i32 = 325;
/// As a pull, from lite pull consumers.
pub const LITE_PULL_MESSAGE: i32 = 361;
/// Takes a delayed message back.
pub const RECALL_MESSAGE: i32 = 370;

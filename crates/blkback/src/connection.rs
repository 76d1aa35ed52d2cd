//! What a frontend says of its rings.
//!
//! It is read in two steps: the [`Terms`] stand in the frontend's directory and say how many rings
//! there are and how large; where the rest is to be found follows from them.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use blkif::{Abi, RingOrder, keys};
use thiserror::Error;
use xen_abi::{EvtchnPort, GrantRef};

/// What a frontend may ask for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Offer {
    /// The largest ring (`max-ring-page-order`, `max-ring-pages`).
    pub max_ring_order: RingOrder,
    /// The most queues (`multi-queue-max-queues`), at least 1.
    pub max_queues: u32,
}

/// Whether a frontend uses the same grants again and again (`feature-persistent`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Persistence {
    /// It does: its pages stay mapped.
    Persistent,
    /// It does not.
    PerRequest,
}

/// What a frontend has chosen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Terms {
    /// The ABI of its requests and responses.
    pub abi: Abi,
    /// The size of each ring.
    pub ring_order: RingOrder,
    /// How many rings, 1 to what was offered.
    pub nr_queues: u32,
    /// How it uses its grants.
    pub persistence: Persistence,
}

/// One ring of a frontend.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RingKeys {
    /// Its pages, in order.
    pub refs: Vec<GrantRef>,
    /// The frontend's port, unbound and meant for us.
    pub port: EvtchnPort,
}

/// A frontend's key that cannot be used. Its value is not part of it: it is the peer's text.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum KeyError {
    /// The node is not there.
    #[error("the frontend has no {key}")]
    Missing {
        /// Which.
        key: String,
    },
    /// It is not a decimal number of 32 bits.
    #[error("the frontend's {key} is no number")]
    NotANumber {
        /// Which.
        key: String,
    },
    /// `protocol` names no ABI of this machine.
    #[error("the frontend's protocol is neither x86_64-abi nor x86_32-abi")]
    Protocol,
    /// A flag that is neither 0 nor 1.
    #[error("the frontend's {key} is neither 0 nor 1")]
    NotAFlag {
        /// Which.
        key: String,
    },
    /// More than was offered.
    #[error("the frontend's {key} is {value}, {min} to {max} were offered")]
    NotOffered {
        /// Which.
        key: String,
        /// What it asks for.
        value: u32,
        /// The least.
        min: u32,
        /// The most.
        max: u32,
    },
    /// `num-ring-pages` is no power of two, or says another size than `ring-page-order`.
    #[error("the frontend's num-ring-pages is {nr_pages}, which no ring-page-order is")]
    RingPages {
        /// What it says.
        nr_pages: u32,
    },
}

impl Terms {
    /// The nodes to read first, in the frontend's directory.
    pub const KEYS: [&'static str; 5] = [
        keys::PROTOCOL,
        keys::RING_PAGE_ORDER,
        keys::NUM_RING_PAGES,
        keys::MULTI_QUEUE_NUM_QUEUES,
        keys::FEATURE_PERSISTENT,
    ];

    /// Reads what stands in [`KEYS`](Self::KEYS), in their order; `None` for a node that is not
    /// there.
    ///
    /// # Errors
    /// The first key that cannot be used.
    pub fn parse(values: [Option<&[u8]>; 5], offer: &Offer) -> Result<Self, KeyError> {
        let [protocol, order, nr_pages, nr_queues, persistent] = values;
        let protocol = match protocol {
            None => None,
            Some(text) => Some(str::from_utf8(text).map_err(|_| KeyError::Protocol)?),
        };
        let abi = Abi::from_protocol(protocol).map_err(|_| KeyError::Protocol)?;
        let nr_queues = optional(keys::MULTI_QUEUE_NUM_QUEUES, nr_queues)?.unwrap_or(1);
        check(keys::MULTI_QUEUE_NUM_QUEUES, nr_queues, 1, offer.max_queues)?;
        let persistence = match persistent {
            None | Some(b"0") => Persistence::PerRequest,
            Some(b"1") => Persistence::Persistent,
            Some(_) => return Err(KeyError::NotAFlag { key: keys::FEATURE_PERSISTENT.into() }),
        };
        let ring_order = ring_order(order, nr_pages, offer)?;
        Ok(Self { abi, ring_order, nr_queues, persistence })
    }

    /// The nodes of ring number `queue`, below the frontend's directory, to read next: its port,
    /// then its pages. A ring of one page may have either name, and the first is the protocol's.
    #[must_use]
    pub fn ring_keys(&self, queue: u32) -> Vec<String> {
        let dir =
            if self.nr_queues > 1 { format!("{}/", keys::Queue(queue)) } else { String::new() };
        let mut names = alloc::vec![format!("{dir}{}", keys::EVENT_CHANNEL)];
        if self.ring_order == RingOrder::ONE_PAGE {
            names.push(format!("{dir}{}", keys::RING_REF));
        }
        let refs = 0..self.ring_order.nr_pages();
        names.extend(refs.map(|page| format!("{dir}{}", keys::RingRef(page))));
        names
    }

    /// Reads what stands in [`ring_keys`](Self::ring_keys), in their order.
    ///
    /// # Errors
    /// The first key that cannot be used.
    pub fn parse_ring<'a>(
        &self,
        queue: u32,
        values: impl IntoIterator<Item = Option<&'a [u8]>>,
    ) -> Result<RingKeys, KeyError> {
        let names = self.ring_keys(queue);
        let mut nodes = names.iter().zip(values);
        let mut next = || nodes.next().map_or(("", None), |(name, value)| (name.as_str(), value));
        let (name, value) = next();
        let port = EvtchnPort(required(name, value)?);
        let mut refs = Vec::new();
        if self.ring_order == RingOrder::ONE_PAGE {
            let (name, value) = next();
            let (_, other) = next();
            refs.push(GrantRef(required(name, value.or(other))?));
        } else {
            for (name, value) in nodes {
                refs.push(GrantRef(required(name, value)?));
            }
        }
        Ok(RingKeys { refs, port })
    }
}

fn ring_order(
    order: Option<&[u8]>,
    nr_pages: Option<&[u8]>,
    offer: &Offer,
) -> Result<RingOrder, KeyError> {
    let max = offer.max_ring_order.get();
    let by_order = optional(keys::RING_PAGE_ORDER, order)?;
    if let Some(order) = by_order {
        check(keys::RING_PAGE_ORDER, order, 0, max)?;
    }
    let nr_pages = optional(keys::NUM_RING_PAGES, nr_pages)?;
    if let Some(nr_pages) = nr_pages {
        check(keys::NUM_RING_PAGES, nr_pages, 1, offer.max_ring_order.nr_pages())?;
        let agree = by_order.is_none_or(|order| nr_pages == 1 << order);
        if !nr_pages.is_power_of_two() || !agree {
            return Err(KeyError::RingPages { nr_pages });
        }
    }
    let order = by_order.or(nr_pages.map(u32::ilog2)).unwrap_or(0);
    // Within what was offered, as was just checked.
    Ok(RingOrder::new(order).unwrap_or(RingOrder::ONE_PAGE))
}

fn check(key: &str, value: u32, min: u32, max: u32) -> Result<(), KeyError> {
    if (min..=max).contains(&value) {
        Ok(())
    } else {
        Err(KeyError::NotOffered { key: key.into(), value, min, max })
    }
}

fn required(key: &str, text: Option<&[u8]>) -> Result<u32, KeyError> {
    optional(key, text)?.ok_or_else(|| KeyError::Missing { key: key.to_string() })
}

fn optional(key: &str, text: Option<&[u8]>) -> Result<Option<u32>, KeyError> {
    let Some(text) = text else { return Ok(None) };
    keys::number(text).map(Some).ok_or_else(|| KeyError::NotANumber { key: key.to_string() })
}

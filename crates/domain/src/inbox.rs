//! What xenstore says, and who it is for.

use alloc::vec::Vec;

use alloc::string::String;
use blkback::{Event, Look, Online};
use blkif::keys;
use catalog::VirtualDevice;
use xen_abi::{DomId, XenbusState};
use xenstore::{Error, ProtocolError, Reply, Request};

use crate::actions::Needed;
use crate::domain::Domain;
use crate::ending::{SHUTDOWN, shutdown_reason};
use crate::inquiry::{FRONTEND, FRONTEND_ID, ONLINE, STATE, Subject};
use crate::platform::{Platform, ShutdownReason};
use crate::upstream::{self, Answer};
use crate::vbd::{BACKEND_DIR, Vbd, VbdId, VbdKey};
use crate::vbds::Vbds;

/// What an answer is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Tag {
    /// A watch of our own.
    Watch,
    /// The domains that have devices.
    Domains,
    /// The devices of one.
    Devices(DomId),
    /// Node number `n` of an inquiry of a vbd.
    Node { key: VbdKey, inquiry: u32, n: usize },
    /// What a vbd offers was published.
    Published(VbdId),
    /// A vbd's frontend is watched.
    Watched(VbdId),
    /// A node of a vbd was written or removed, its frontend is not watched any more.
    Written(VbdId),
    /// The state that a vbd has before its directory goes was read.
    Closed(VbdId),
    /// An error node was written, or there was no room for it: the console has said it.
    ErrorTold,
    /// `control/shutdown` was read.
    Shutdown,
    /// Nothing of the domain's is on its way to xenstore any more: it may end.
    LastWord,
    /// `data/usage` was written.
    Usage,
    /// `data/request` was read.
    Request,
    /// dom0 was answered.
    Answered,
    /// One of the nodes between dom0 and us was written or removed.
    Control,
    /// One of our own vbds.
    Upstream(VirtualDevice, Answer),
}

const BACKEND_TOKEN: &str = "backend";
const SHUTDOWN_TOKEN: &str = "shutdown";
pub(crate) const REQUEST_TOKEN: &str = "request";

/// What is to be done about a message, once nothing is borrowed from it any more.
enum Heard {
    Nothing,
    /// Look at these, as far as they are ours, or begin with them.
    Found(Vec<VbdKey>),
    /// Look at what we know of that domain, or of all, and list what is there.
    List(Option<DomId>),
    /// List the devices of these, and look at all that we know.
    Domains(Vec<Option<DomId>>),
    Proceed(VbdKey),
    /// What it leaves with stands in xenstore.
    Closed(VbdKey),
    /// What it offers stands in xenstore.
    Published(VbdKey),
    /// xenstore refuses what it cannot be served without.
    Denied(VbdKey, Needed, Error),
    ReadShutdown,
    Shutdown(ShutdownReason),
    ReadRequest,
    /// Something has changed of one of our own vbds.
    Upstream {
        device: u32,
        path: String,
    },
    /// xenstore has answered about one of them.
    UpstreamAnswered(VirtualDevice, Answer, Result<(), Error>),
    /// dom0 asks.
    Request(Vec<u8>),
    /// Its answer stands, or there was nothing to be answered.
    Answered(Result<(), Error>),
}

impl<P: Platform> Domain<P> {
    /// Asks to be told of devices and of the end. Each watch tells at once what is there already.
    pub(crate) fn subscribe(&mut self, platform: &mut P) {
        for (path, token) in [(BACKEND_DIR, BACKEND_TOKEN), (SHUTDOWN, SHUTDOWN_TOKEN)] {
            self.submit(platform, Request::Watch { path, token }, Tag::Watch);
        }
        self.open_control(platform);
        self.send(platform);
    }

    /// Queues a request that must not fail for want of room: there are few of its kind.
    pub(crate) fn submit(&mut self, platform: &mut P, request: Request<'_>, tag: Tag) {
        if let Err(error) = self.xenstore.client.submit(request, tag) {
            platform.log(format_args!("{error}"));
        }
    }

    /// Takes one message; whether there was one.
    pub(crate) fn receive(&mut self, platform: &mut P) -> Result<bool, ProtocolError> {
        let Some(event) = self.xenstore.client.receive(&self.xenstore.page)? else {
            return Ok(false);
        };
        let heard = match event {
            xenstore::Event::Watch { path, token } => match token {
                BACKEND_TOKEN => changed(path),
                SHUTDOWN_TOKEN => Heard::ReadShutdown,
                REQUEST_TOKEN => Heard::ReadRequest,
                token if let Some(device) = upstream::parse_token(token) => {
                    Heard::Upstream { device, path: path.into() }
                }
                token => {
                    parse_key(token).map_or(Heard::Nothing, |key| Heard::Found(alloc::vec![key]))
                }
            },
            xenstore::Event::Reply { tag, result } => match tag {
                Tag::Domains => match result {
                    Ok(Reply::Names(names)) => {
                        let domains = names.filter_map(parse_number).map(DomId);
                        Heard::Domains(domains.map(Some).collect())
                    }
                    _ => Heard::Nothing,
                },
                Tag::Devices(frontend) => match result {
                    Ok(Reply::Names(names)) => {
                        let devids = names.filter_map(parse_number);
                        Heard::Found(devids.map(|devid| VbdKey { frontend, devid }).collect())
                    }
                    _ => Heard::Nothing,
                },
                Tag::Node { key, inquiry: number, n } => {
                    let value = match result {
                        Ok(Reply::Value(value)) => Some(value),
                        _ => None,
                    };
                    let inquiry = self.vbds.get_mut(&key).and_then(|vbd| vbd.inquiry.as_mut());
                    let last = inquiry
                        .filter(|inquiry| inquiry.number == number)
                        .is_some_and(|inquiry| inquiry.answer(n, value));
                    if last {
                        self.conclude(platform, key);
                        Heard::Proceed(key)
                    } else {
                        Heard::Nothing
                    }
                }
                Tag::Published(id) => match (living(&mut self.vbds, id), result) {
                    (None, _) => Heard::Nothing,
                    (Some(vbd), Ok(_)) => {
                        vbd.handle(Event::Published);
                        Heard::Published(id.key)
                    }
                    (Some(vbd), Err(error)) => {
                        // Where the directory is gone meanwhile, the look will tell. Where it is
                        // another one, it is read anew.
                        vbd.look = true;
                        if error == Error::Unexpected {
                            vbd.handle(Event::Vanished);
                        }
                        if is_gone(error) || error == Error::Unexpected {
                            Heard::Proceed(id.key)
                        } else {
                            Heard::Denied(id.key, Needed::Nodes, error)
                        }
                    }
                },
                Tag::Watched(id) => match (living(&mut self.vbds, id), result) {
                    // One that was refused anyway goes its way without.
                    (Some(vbd), Err(error)) if vbd.disk().is_some() => {
                        Heard::Denied(id.key, Needed::Watch, error)
                    }
                    _ => Heard::Nothing,
                },
                Tag::Closed(id) => match living(&mut self.vbds, id) {
                    Some(_) => Heard::Closed(id.key),
                    None => Heard::Nothing,
                },
                Tag::ErrorTold => Heard::Nothing,
                Tag::Written(id) => match (living(&mut self.vbds, id), result) {
                    (Some(vbd), Err(error)) => {
                        vbd.look = true;
                        if !is_gone(error) {
                            platform.log(format_args!("{vbd}: cannot write: {error}"));
                        }
                        Heard::Proceed(id.key)
                    }
                    _ => Heard::Nothing,
                },
                Tag::Shutdown => match result {
                    Ok(Reply::Value(value)) => match shutdown_reason(value) {
                        Ok(Some(reason)) => Heard::Shutdown(reason),
                        Ok(None) => Heard::Nothing,
                        Err(word) => {
                            platform.log(format_args!("{SHUTDOWN}: cannot do `{word}`"));
                            Heard::Nothing
                        }
                    },
                    _ => Heard::Nothing,
                },
                Tag::LastWord => {
                    self.shutdown.last_word_heard();
                    Heard::Nothing
                }
                Tag::Request => match result {
                    Ok(Reply::Value(value)) => Heard::Request(value.into()),
                    _ => Heard::Answered(Ok(())),
                },
                Tag::Watch => tell_refused(platform, "watch", &result),
                Tag::Usage => tell_refused(platform, "usage", &result),
                Tag::Control => tell_refused(platform, "answer", &result),
                Tag::Answered => Heard::Answered(result.map(|_| ())),
                Tag::Upstream(device, answer) => {
                    if let (Answer::Node { inquiry, n }, Some(upstream)) =
                        (answer, self.upstreams.get_mut(device))
                    {
                        let value = match result {
                            Ok(Reply::Value(value)) => Some(value),
                            _ => None,
                        };
                        upstream.told(inquiry, n, value);
                    }
                    Heard::UpstreamAnswered(device, answer, result.map(|_| ()))
                }
            },
            xenstore::Event::Stray(stray) => {
                platform.log(format_args!("{stray}"));
                Heard::Nothing
            }
        };
        self.act_on(platform, heard);
        Ok(true)
    }

    fn act_on(&mut self, platform: &mut P, heard: Heard) {
        match heard {
            Heard::Nothing => {}
            Heard::Found(keys) => {
                for key in keys {
                    self.look(platform, key);
                }
            }
            Heard::List(domain) => {
                self.look_at_known(platform, domain);
                self.list(platform, &[domain]);
            }
            Heard::Domains(domains) => self.list(platform, &domains),
            Heard::Proceed(key) => self.proceed(platform, key),
            Heard::Closed(key) => self.linger(platform, key),
            Heard::Published(key) => {
                self.correct_size(platform, key);
                self.proceed(platform, key);
            }
            Heard::Denied(key, needed, error) => self.give_up_vbd(platform, key, needed, error),
            Heard::ReadShutdown => {
                self.submit(platform, Request::Read(SHUTDOWN), Tag::Shutdown);
            }
            Heard::ReadRequest => self.read_request(platform),
            Heard::UpstreamAnswered(device, answer, result) => {
                self.upstream_answered(platform, device, answer, result);
            }
            Heard::Upstream { device, path } => self.upstream_changed(platform, device, &path),
            Heard::Request(text) => self.converse(platform, &text),
            Heard::Answered(result) => self.told(platform, result),
            Heard::Shutdown(reason) => self.asked_to_end(platform, reason),
        }
    }

    /// Lists what devices a domain has, or what domains have any (`None`).
    fn list(&mut self, platform: &mut P, wanted: &[Option<DomId>]) {
        for &wanted in wanted {
            if !self.to_list.contains(&wanted) {
                self.to_list.push(wanted);
            }
        }
        self.list_more(platform);
    }

    /// Asks for listings, as far as xenstore's queue has room for them.
    pub(crate) fn list_more(&mut self, platform: &mut P) {
        while !self.to_list.is_empty() && self.has_room() {
            match self.to_list.pop().flatten() {
                None => self.submit(platform, Request::Directory(BACKEND_DIR), Tag::Domains),
                Some(domain) => {
                    let path = alloc::format!("{BACKEND_DIR}/{domain}");
                    self.submit(platform, Request::Directory(&path), Tag::Devices(domain));
                }
            }
        }
    }

    fn look_at_known(&mut self, platform: &mut P, domain: Option<DomId>) {
        let of_it = |key: &VbdKey| domain.is_none_or(|domain| key.frontend == domain);
        let keys: Vec<VbdKey> = self.vbds.keys().filter(of_it).collect();
        for key in keys {
            self.look(platform, key);
        }
    }

    /// Looks at a device again, or for the first time.
    pub(crate) fn look(&mut self, platform: &mut P, key: VbdKey) {
        let next_life = &mut self.next_life;
        let vbd = self.vbds.get_or_insert_with(&key, || {
            *next_life = next_life.wrapping_add(1);
            Vbd::new(VbdId { key, life: *next_life })
        });
        vbd.look = true;
        self.proceed(platform, key);
    }

    /// The last answer of an inquiry is there.
    fn conclude(&mut self, platform: &mut P, key: VbdKey) {
        let Some(vbd) = self.vbds.get_mut(&key) else { return };
        let Some(inquiry) = vbd.inquiry.take() else { return };
        match &inquiry.subject {
            Subject::Identity => self.identify(platform, key, &inquiry),
            Subject::Look(own) => {
                let state = inquiry.value(0);
                let is_another = own.is_another(state);
                if state.is_none() || is_another {
                    vbd.look |= is_another;
                    vbd.handle(Event::Vanished);
                    return;
                }
                let online = match inquiry.value(1) {
                    Some(b"1") => Online::Yes,
                    _ => Online::No,
                };
                // A state that is none is no reason to end it.
                let frontend = inquiry
                    .value(2)
                    .map(|text| XenbusState::parse(text).unwrap_or(XenbusState::Unknown));
                vbd.handle(Event::Looked(Look { online, frontend }));
                if let Some(params) = inquiry.value(3) {
                    self.obey_params(platform, key, params);
                }
            }
            Subject::Upstream(_) => {}
            Subject::Terms => self.read_rings(platform, key, &inquiry),
            Subject::Ring(terms, known) => {
                self.read_ring(platform, key, *terms, known.clone(), &inquiry);
            }
        }
    }
}

/// The vbd whose answer has come, unless its key lives another life by now.
fn living<M>(vbds: &mut Vbds<M>, id: VbdId) -> Option<&mut Vbd<M>> {
    vbds.get_mut(&id.key).filter(|vbd| vbd.id == id)
}

fn tell_refused<P: Platform>(
    platform: &mut P,
    what: &str,
    result: &Result<Reply<'_>, Error>,
) -> Heard {
    if let Err(error) = result {
        platform.log(format_args!("xenstore refuses our {what}: {error}"));
    }
    Heard::Nothing
}

/// What an error says where the directory was removed meanwhile: its parent is dom0's.
pub(crate) fn is_gone(error: Error) -> bool {
    matches!(error, Error::Enoent | Error::Eacces)
}

/// What a change below `backend/vbd` calls for.
fn changed(path: &str) -> Heard {
    let Some(below) = path.strip_prefix(BACKEND_DIR) else { return Heard::Nothing };
    let mut names = below.split('/').skip(1);
    let (domain, devid, node) = (names.next(), names.next(), names.next());
    match (domain.map(parse_number), devid.map(parse_number), node) {
        (None, ..) => Heard::List(None),
        (Some(Some(domain)), None, _) => Heard::List(Some(DomId(domain))),
        (
            Some(Some(domain)),
            Some(Some(devid)),
            // What else changes there is our own writing.
            None | Some(STATE | ONLINE | FRONTEND | FRONTEND_ID | keys::PARAMS | keys::MODE),
        ) => Heard::Found(alloc::vec![VbdKey { frontend: DomId(domain), devid }]),
        _ => Heard::Nothing,
    }
}

fn parse_key(text: &str) -> Option<VbdKey> {
    let (frontend, devid) = text.split_once('/')?;
    Some(VbdKey { frontend: DomId(parse_number(frontend)?), devid: parse_number(devid)? })
}

fn parse_number<N: core::str::FromStr>(text: &str) -> Option<N> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

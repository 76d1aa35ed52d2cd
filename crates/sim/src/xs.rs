//! xenstore for the toolstack and the guests of a test.

use xen_abi::DomId;

use crate::Machine;
use crate::xenstored::{Caller, Errno, Perms, Xenstored};

/// xenstore with the rights of one domain, and within one transaction where there is one.
#[derive(Clone, Debug)]
pub struct Xs {
    machine: Machine,
    who: Caller,
}

impl Xs {
    pub(crate) fn new(machine: Machine, domid: DomId) -> Self {
        Self { machine, who: Caller::plain(domid) }
    }

    fn call<T>(&self, op: impl FnOnce(&mut Xenstored, Caller) -> T) -> T {
        let result = op(&mut self.machine.xenstored(), self.who);
        self.machine.wake_xenstored();
        result
    }

    /// A node's value.
    ///
    /// # Errors
    /// As xenstored answers; EINVAL for a value that is no text.
    pub fn read(&self, path: &str) -> Result<String, Errno> {
        let value = self.call(|xenstored, who| xenstored.read(who, path))?;
        String::from_utf8(value).map_err(|_| Errno::Einval)
    }

    /// A node's value, if there is a readable one.
    #[must_use]
    pub fn get(&self, path: &str) -> Option<String> {
        self.read(path).ok()
    }

    /// A node's value as a number, if there is a readable one.
    #[must_use]
    pub fn number(&self, path: &str) -> Option<u64> {
        self.get(path)?.parse().ok()
    }

    /// Whether the node is there and readable.
    #[must_use]
    pub fn exists(&self, path: &str) -> bool {
        self.call(|xenstored, who| xenstored.read(who, path)).is_ok()
    }

    /// Writes a node.
    ///
    /// # Errors
    /// As xenstored answers.
    pub fn write(&self, path: &str, value: impl AsRef<[u8]>) -> Result<(), Errno> {
        self.call(|xenstored, who| xenstored.write(who, path, value.as_ref()))
    }

    /// Creates a node.
    ///
    /// # Errors
    /// As xenstored answers.
    pub fn mkdir(&self, path: &str) -> Result<(), Errno> {
        self.call(|xenstored, who| xenstored.mkdir(who, path))
    }

    /// Removes a node and all below it.
    ///
    /// # Errors
    /// As xenstored answers.
    pub fn rm(&self, path: &str) -> Result<(), Errno> {
        self.call(|xenstored, who| xenstored.rm(who, path))
    }

    /// Names of a node's children.
    ///
    /// # Errors
    /// As xenstored answers.
    pub fn directory(&self, path: &str) -> Result<Vec<String>, Errno> {
        self.call(|xenstored, who| xenstored.directory(who, path))
    }

    /// A node's permissions.
    ///
    /// # Errors
    /// As xenstored answers.
    pub fn get_perms(&self, path: &str) -> Result<Perms, Errno> {
        self.call(|xenstored, who| xenstored.get_perms(who, path))
    }

    /// Sets a node's permissions.
    ///
    /// # Errors
    /// As xenstored answers.
    pub fn set_perms(&self, path: &str, perms: Perms) -> Result<(), Errno> {
        self.call(|xenstored, who| xenstored.set_perms(who, path, perms))
    }

    /// Starts a transaction: xenstore as it looks within. It ends by [`Xs::commit`].
    ///
    /// # Errors
    /// As xenstored answers.
    pub fn begin(&self) -> Result<Self, Errno> {
        let tx_id = self.call(Xenstored::transaction_start)?;
        Ok(Self { machine: self.machine.clone(), who: Caller { tx_id, ..self.who } })
    }

    /// Commits the transaction.
    ///
    /// # Errors
    /// As xenstored answers, EAGAIN above all.
    pub fn commit(self) -> Result<(), Errno> {
        self.call(Xenstored::transaction_commit)
    }

    /// Aborts the transaction.
    ///
    /// # Errors
    /// As xenstored answers.
    pub fn abort(self) -> Result<(), Errno> {
        self.call(Xenstored::transaction_abort)
    }

    /// Runs `body` in a transaction, again and again while it conflicts.
    ///
    /// # Errors
    /// What `body` fails with, after an abort; or the commit, but for EAGAIN.
    pub fn transaction<T>(
        &self,
        mut body: impl FnMut(&Self) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        loop {
            let within = self.begin()?;
            match body(&within) {
                Ok(value) => match within.commit() {
                    Err(Errno::Eagain) => {}
                    committed => return committed.map(|()| value),
                },
                Err(errno) => {
                    within.abort()?;
                    return Err(errno);
                }
            }
        }
    }
}

// What a sidecar reads from the ledger to put Redis back: the balances of one account with its
// configuration, and configurations alone.

package import NIOCore
package import TollgateCore

package struct BalancesRequest: OpcodeMessage {
  package static let opcode = Opcode.balances
  package var account: Subject
  /// Periods that ended before this instant are left out, but for what a later period still hangs
  /// on: those of `<n>s` whose successor ended since, and of each grant the latest instances.
  package var since: WallTime

  package init(account: Subject, since: WallTime) {
    self.account = account
    self.since = since
  }

  package func encode(into buffer: inout ByteBuffer) {
    buffer.put(account)
    buffer.put(since.milliseconds)
  }

  package static func decode(from buffer: inout ByteBuffer) throws(WireError) -> BalancesRequest {
    let request = BalancesRequest(
      account: try buffer.takeAccount(), since: try buffer.takeTime())
    try buffer.requireEnd(of: "BALANCES")
    return request
  }
}

/// One page; the flag `more` in the header says that another follows. Version and configuration
/// stand in every page, and all pages are of one moment.
package struct BalancesReply: OpcodeMessage {
  package static let opcode = Opcode.balancesReply

  /// Of each grant the latest instances are answered, this many where there are, however long ago
  /// they ended: what comes over into one hangs on those before it.
  package static let grantInstances = 4

  package struct Balance: Hashable, Sendable {
    package var subject: Subject
    package var feature: Name
    package var window: Window
    package var period: Period
    /// The sum of everything posted to this counter.
    package var settled: Int64
    /// Units that an operator's reset took out of the limits' sight in this period.
    package var forgiven: Int64

    package init(
      subject: Subject, feature: Name, window: Window, period: Period, settled: Int64,
      forgiven: Int64 = 0
    ) {
      self.subject = subject
      self.feature = feature
      self.window = window
      self.period = period
      self.settled = settled
      self.forgiven = forgiven
    }
  }

  package var account: Subject
  /// The account's configuration version; 0: the ledger knows no configuration of it.
  package var version: Int64
  /// JSON of the AccountConfig; empty where the version is 0.
  package var config: [UInt8]
  package var balances: [Balance]

  package init(account: Subject, version: Int64, config: [UInt8], balances: [Balance]) {
    self.account = account
    self.version = version
    self.config = config
    self.balances = balances
  }

  package func encode(into buffer: inout ByteBuffer) {
    buffer.put(account)
    buffer.put(version)
    buffer.put(bytes: config)
    buffer.put(UInt16(balances.count))
    for balance in balances {
      buffer.put(balance.subject)
      buffer.put(balance.feature)
      buffer.put(balance.window)
      buffer.put(balance.period)
      buffer.put(balance.settled)
      buffer.put(balance.forgiven)
    }
  }

  package static func decode(from buffer: inout ByteBuffer) throws(WireError) -> BalancesReply {
    var reply = BalancesReply(
      account: try buffer.takeAccount(), version: try buffer.takeOrdinal(),
      config: try buffer.takeBytes(
        max: WireLimits.accountConfigBytesMax, of: "an account configuration"),
      balances: [])
    let count = try buffer.takeCount(
      UInt16.self, max: WireLimits.balancesMax, each: 39, of: "balances")
    reply.balances.reserveCapacity(count)
    for _ in 0..<count {
      reply.balances.append(
        Balance(
          subject: try buffer.takeSubject(), feature: try buffer.takeName(),
          window: try buffer.takeWindow(), period: try buffer.takePeriod(),
          settled: try buffer.takeQuantity(), forgiven: try buffer.takeQuantity()))
    }
    try buffer.requireEnd(of: "BALANCES_REPLY")
    return reply
  }
}

/// The newest configuration that the ledger has: all of the deployment's, or one account's.
package struct ConfigRequest: OpcodeMessage {
  package static let opcode = Opcode.config
  /// nil: the global configuration.
  package var account: Subject?

  package init(account: Subject?) { self.account = account }

  package func encode(into buffer: inout ByteBuffer) {
    if let account { buffer.put(account) } else { buffer.put(UInt16(0)) }
  }

  package static func decode(from buffer: inout ByteBuffer) throws(WireError) -> ConfigRequest {
    let request = ConfigRequest(account: try buffer.takeOptionalAccount())
    try buffer.requireEnd(of: "CONFIG")
    return request
  }
}

package struct ConfigReply: OpcodeMessage {
  package static let opcode = Opcode.configReply
  package var account: Subject?
  /// 0: the ledger has none.
  package var version: Int64
  /// JSON of the GlobalConfig or AccountConfig; empty where the version is 0.
  package var document: [UInt8]

  package init(account: Subject?, version: Int64, document: [UInt8]) {
    self.account = account
    self.version = version
    self.document = document
  }

  package func encode(into buffer: inout ByteBuffer) {
    if let account { buffer.put(account) } else { buffer.put(UInt16(0)) }
    buffer.put(version)
    buffer.put(bytes: document)
  }

  package static func decode(from buffer: inout ByteBuffer) throws(WireError) -> ConfigReply {
    let reply = ConfigReply(
      account: try buffer.takeOptionalAccount(), version: try buffer.takeOrdinal(),
      document: try buffer.takeBytes(max: WireLimits.documentBytesMax, of: "a document"))
    try buffer.requireEnd(of: "CONFIG_REPLY")
    return reply
  }
}

// A request encoded once, and the places in it that change from one request to the next.
//
// Why this shape: the generator must not be the bottleneck, so a request is a memcpy and a few
// stores. The bytes come from the real encoders, given sentinel values; the holes are where the
// sentinels are found. So the generator knows nothing of the layout of a frame or a command, and
// cannot fall behind when a layout changes: then a sentinel is not found, and that is an error.

package import TollgateCore

/// The names of the subjects of a run: of fixed width, so that one template fits all.
package struct SubjectNames: Sendable, Hashable {
  package let prefix: String
  package let accounts: Int
  /// 0: the account itself is the subject.
  package let members: Int
  let accountWidth: Int
  let memberWidth: Int

  package static let accountsMax = 10_000_000
  package static let membersMax = 1_000_000
  package static let subjectsMax = 20_000_000

  package init(prefix: String, accounts: Int, members: Int) throws {
    guard (1...Self.accountsMax).contains(accounts), (0...Self.membersMax).contains(members),
      accounts * max(1, members) <= Self.subjectsMax
    else { throw BenchError("\(accounts) accounts with \(members) members each are too many") }
    self.prefix = prefix
    self.accounts = accounts
    self.members = members
    accountWidth = max(6, "\(accounts - 1)".count)
    memberWidth = max(4, "\(max(0, members - 1))".count)
    _ = try subject(0)
  }

  package var count: Int { accounts * max(1, members) }

  package func account(_ index: Int) -> String {
    prefix + Self.pad(index, accountWidth)
  }

  package func member(_ index: Int) -> String { "/m" + Self.pad(index, memberWidth) }

  /// The text of subject number `index`.
  package func path(_ index: Int) -> String {
    members == 0 ? account(index) : account(index / members) + member(index % members)
  }

  package func subject(_ index: Int) throws -> Subject { try Subject(path(index)) }

  private static func pad(_ value: Int, _ width: Int) -> String {
    let digits = "\(value)"
    return String(repeating: "0", count: max(0, width - digits.count)) + digits
  }

  /// A subject whose digits are unlikely to stand in a request by accident.
  var sentinel: Int {
    func odd(_ width: Int) -> Int {
      "9473826150".prefix(width).reduce(0) { $0 * 10 + ($1.wholeNumberValue ?? 0) }
    }
    return members == 0
      ? odd(accountWidth) : odd(accountWidth) * members + odd(memberWidth) % members
  }
}

package struct Template: Sendable {
  enum Hole: Sendable, Hashable {
    case account(Int)
    case member(Int)
    case identifier(Int)
    case correlation(Int)
    case amount(Int, feature: Int)
  }

  /// Values no real request has.
  package static let identifierLow: UInt64 = 0xA1B2_93C4_85D6_77E8
  package static let correlation: UInt64 = 0xC9D8_E7F6_A5B4_9382
  package static func amount(_ feature: Int) -> Int64 { 0x1A_2B3C_4D5E_6F70 + Int64(feature) }

  let bytes: [UInt8]
  let holes: [Hole]
  let names: SubjectNames

  /// - Parameters:
  ///   - amounts: how many features have an amount to be patched, each at one place.
  ///   - correlated: whether the correlation id is to be found.
  package init(
    _ bytes: [UInt8], names: SubjectNames, identifier: OperationID, amounts: Int, correlated: Bool
  ) throws {
    self.bytes = bytes
    self.names = names
    var holes: [Hole] = []
    let account = Array(
      names.account(names.members == 0 ? names.sentinel : names.sentinel / names.members).utf8)
    for at in Self.places(of: account, in: bytes) {
      holes.append(.account(at + names.prefix.utf8.count))
      guard names.members > 0 else { continue }
      let member = Array(names.member(names.sentinel % names.members).utf8)
      let after = at + account.count
      if bytes[after...].starts(with: member) { holes.append(.member(after + 2)) }
    }
    guard !holes.isEmpty else { throw BenchError("the encoded request names no subject") }
    let wide = Self.bigEndian(identifier.high) + Self.bigEndian(identifier.low)
    let ids = Self.places(of: wide, in: bytes)
    guard !ids.isEmpty else { throw BenchError("the encoded request holds no operation id") }
    holes += ids.map { .identifier($0) }
    if correlated {
      let found = Self.places(of: Self.bigEndian(Self.correlation).reversed(), in: bytes)
      guard found.count == 1 else { throw BenchError("the request has no one correlation id") }
      holes.append(.correlation(found[0]))
    }
    for feature in 0..<amounts {
      let text = Self.bigEndian(UInt64(bitPattern: Self.amount(feature)))
      let found = Self.places(of: text.reversed(), in: bytes)
      guard found.count == 1 else { throw BenchError("the request has no one amount \(feature)") }
      holes.append(.amount(found[0], feature: feature))
    }
    self.holes = holes
  }

  /// Appends the request for one operation. `amounts` starts at `base`.
  func render(
    subject: Int, high: UInt64, low: UInt64, correlation: UInt64, amounts: ContiguousArray<Int64>,
    base: Int, into out: Bytes
  ) {
    let start = out.count
    out.append(bytes)
    for hole in holes {
      switch hole {
      case .account(let at):
        out.setDecimal(
          names.members == 0 ? subject : subject / names.members, width: names.accountWidth,
          at: start + at)
      case .member(let at):
        out.setDecimal(subject % names.members, width: names.memberWidth, at: start + at)
      case .identifier(let at):
        out.set(high.bigEndian, at: start + at)
        out.set(low.bigEndian, at: start + at + 8)
      case .correlation(let at): out.set(correlation, at: start + at)
      case .amount(let at, let feature): out.set(amounts[base + feature], at: start + at)
      }
    }
  }

  private static func bigEndian(_ value: UInt64) -> [UInt8] {
    (0..<8).map { UInt8(truncatingIfNeeded: value >> UInt64(56 - 8 * $0)) }
  }

  static func places(of needle: [UInt8], in bytes: [UInt8]) -> [Int] {
    guard needle.count <= bytes.count else { return [] }
    return (0...(bytes.count - needle.count)).filter { bytes[$0...].starts(with: needle) }
  }
}

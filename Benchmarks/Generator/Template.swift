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
  /// What follows the names of all subjects, for levels below the members: "" or "/run".
  package let suffix: String
  let accountWidth: Int
  let memberWidth: Int

  package static let accountsMax = 10_000_000
  package static let membersMax = 1_000_000
  package static let subjectsMax = 20_000_000

  package init(prefix: String, accounts: Int, members: Int, suffix: String = "") throws {
    guard (1...Self.accountsMax).contains(accounts), (0...Self.membersMax).contains(members),
      accounts * max(1, members) <= Self.subjectsMax
    else { throw BenchError("\(accounts) accounts with \(members) members each are too many") }
    self.prefix = prefix
    self.accounts = accounts
    self.members = members
    self.suffix = suffix
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
    (members == 0 ? account(index) : account(index / members) + member(index % members)) + suffix
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

/// Immutable once made, so it may be shared; it owns a copy of the bytes where a render can reach
/// them by address alone.
@safe package final class Template: Sendable {
  enum Kind: Sendable {
    case account
    case member
    case identifier
    case amount
  }

  struct Hole: Sendable {
    var kind: Kind
    var at: Int
    var feature = 0
  }

  /// Values no real request has.
  package static let identifierLow: UInt64 = 0xA1B2_93C4_85D6_77E8
  package static func amount(_ feature: Int) -> Int64 { 0x1A_2B3C_4D5E_6F70 + Int64(feature) }

  package let count: Int
  // Safe: written by init alone, read by everyone after it.
  nonisolated(unsafe) private let bytes: UnsafeMutableRawPointer
  // Safe: as above.
  nonisolated(unsafe) private let holes: UnsafeMutableBufferPointer<Hole>
  private let members: Int
  private let accountWidth: Int
  private let memberWidth: Int

  /// - Parameter amounts: how many features have an amount to be patched, each at one place.
  package init(
    _ bytes: [UInt8], names: SubjectNames, identifier: OperationID, amounts: Int
  ) throws {
    var holes: [Hole] = []
    let account = Array(
      names.account(names.members == 0 ? names.sentinel : names.sentinel / names.members).utf8)
    for at in Self.places(of: account, in: bytes) {
      holes.append(Hole(kind: .account, at: at + names.prefix.utf8.count))
      guard names.members > 0 else { continue }
      let member = Array(names.member(names.sentinel % names.members).utf8)
      let after = at + account.count
      if bytes[after...].starts(with: member) { holes.append(Hole(kind: .member, at: after + 2)) }
    }
    guard !holes.isEmpty else { throw BenchError("the encoded request names no subject") }
    let wide = Self.bigEndian(identifier.high) + Self.bigEndian(identifier.low)
    let ids = Self.places(of: wide, in: bytes)
    guard !ids.isEmpty else { throw BenchError("the encoded request holds no operation id") }
    holes += ids.map { Hole(kind: .identifier, at: $0) }
    for feature in 0..<amounts {
      let text = Self.bigEndian(UInt64(bitPattern: Self.amount(feature)))
      let found = Self.places(of: text.reversed(), in: bytes)
      guard found.count == 1 else { throw BenchError("the request has no one amount \(feature)") }
      holes.append(Hole(kind: .amount, at: found[0], feature: feature))
    }
    count = bytes.count
    members = names.members
    accountWidth = names.accountWidth
    memberWidth = names.memberWidth
    let copy = UnsafeMutableRawPointer.allocate(byteCount: bytes.count, alignment: 16)
    unsafe UnsafeMutableRawBufferPointer(start: copy, count: bytes.count).copyBytes(from: bytes)
    unsafe self.bytes = unsafe copy
    unsafe self.holes = .allocate(capacity: holes.count)
    _ = unsafe self.holes.initialize(from: holes)
  }

  deinit {
    unsafe bytes.deallocate()
    unsafe holes.deallocate()
  }

  /// Appends the request for one operation. Every hole lies within the bytes: it was found there.
  @unsafe @inline(__always)
  func render(_ asked: Asked, amounts: UnsafePointer<Int64>, into out: Bytes) {
    let start = unsafe out.claim(count)
    unsafe start.copyMemory(from: bytes, byteCount: count)
    for index in unsafe 0..<holes.count {
      let hole = unsafe holes[index]
      let place = unsafe start + hole.at
      switch hole.kind {
      case .account:
        unsafe Self.decimal(
          members == 0 ? asked.subject : asked.subject / members, width: accountWidth, at: place)
      case .member: unsafe Self.decimal(asked.subject % members, width: memberWidth, at: place)
      case .identifier:
        unsafe place.storeBytes(of: asked.high.bigEndian, as: UInt64.self)
        unsafe place.storeBytes(of: asked.low.bigEndian, toByteOffset: 8, as: UInt64.self)
      case .amount:
        unsafe place.storeBytes(of: amounts[hole.feature].littleEndian, as: Int64.self)
      }
    }
  }

  /// Writes `value` as `width` decimal digits, zero-padded.
  @unsafe @inline(__always)
  private static func decimal(_ value: Int, width: Int, at place: UnsafeMutableRawPointer) {
    // 32 bits hold every subject number, and divide faster.
    var rest = UInt32(truncatingIfNeeded: value)
    var position = width
    while position > 0 {
      position -= 1
      let next = rest / 10
      let digit = UInt8(truncatingIfNeeded: rest &- next &* 10) &+ 0x30
      unsafe place.storeBytes(of: digit, toByteOffset: position, as: UInt8.self)
      rest = next
    }
  }

  static func bigEndian(_ value: UInt64) -> [UInt8] {
    (0..<8).map { UInt8(truncatingIfNeeded: value >> UInt64(56 - 8 * $0)) }
  }

  static func places(of needle: [UInt8], in bytes: [UInt8]) -> [Int] {
    guard needle.count <= bytes.count else { return [] }
    return (0...(bytes.count - needle.count)).filter { bytes[$0...].starts(with: needle) }
  }
}

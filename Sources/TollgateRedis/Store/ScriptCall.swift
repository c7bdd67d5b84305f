// What every script call has in common: it names its script and bucket, writes itself as one
// EVALSHA, and decodes its reply. Values only: no connection, no clock, no waiting.

package import NIOCore
package import TollgateCore

package protocol ScriptCall: Sendable {
  associatedtype Reply: Sendable
  var script: ScriptName { get }
  var bucket: Int { get }
  /// All keys the script may touch, all of one bucket.
  var keys: [String] { get }
  var arguments: [RESPArgument] { get }
  func decode(_ reply: RESPReply) -> Reply
  func write(into buffer: inout ByteBuffer, library: ScriptLibrary)
}

extension ScriptCall {
  package func write(into buffer: inout ByteBuffer, library: ScriptLibrary = .shared) {
    let keys = keys
    let arguments = arguments
    var writer = RESPWriter()
    writer.begin(&buffer, count: 3 + keys.count + arguments.count)
    writer.append(literal: "EVALSHA", to: &buffer)
    writer.append(library.sha(script), to: &buffer)
    writer.append(integer: Int64(keys.count), to: &buffer)
    for key in keys { writer.append(key, to: &buffer) }
    for argument in arguments { writer.append(argument, to: &buffer) }
  }
}

/// First integer of every array reply; the numbers stand in part_base.lua too.
enum ReplyCode: Int64, Sendable {
  case done = 0
  case replayed = 1
  case fenced = 2
  case mismatch = 3
  case tooOld = 4
  case fromFuture = 5
  case expired = 6
  case stale = 7
  case rebuild = 8
  case period = 9
  case overflow = 10
  case conflict = 11
  case counted = 12
  case outboxFull = 13
  case notHeld = 14
  case young = 15
  case holdsElsewhere = 16
  case holdsDue = 17
  case planWanted = 18
}

/// How a call other than `decide` came out. `error` changed nothing: either Redis refused the
/// script, or the script undid what it had written.
package enum StoreReply<Value: Sendable>: Sendable {
  case done(Value)
  case fenced(FenceState)
  case error(String)

  package var value: Value? {
    if case .done(let value) = self { return value }
    return nil
  }
}

extension StoreReply: Equatable where Value: Equatable {}

extension RESPReply {
  /// Integer replies and integers that Lua sent as text.
  var number: Int64? { integer ?? bytes.flatMap { Int64(String(decoding: $0, as: UTF8.self)) } }

  var code: ReplyCode? { array?.first?.integer.flatMap { ReplyCode(rawValue: $0) } }

  subscript(index: Int) -> RESPReply {
    guard let array, index < array.count else { return .null }
    return array[index]
  }

  var fenceState: FenceState { FenceState(text: self[1].text, sequence: self[2].number) }

  var problem: String { error ?? "unexpected reply \(self)" }

  /// `{0, …}` through `body`, FENCED and errors as they are.
  func storeReply<Value>(_ body: (RESPReply) -> Value?) -> StoreReply<Value> {
    switch code {
    case .fenced?: return .fenced(fenceState)
    case .overflow?: return .error("QUANTITY_OVERFLOW")
    default: return body(self).map { .done($0) } ?? .error(problem)
    }
  }
}

extension Fence {
  /// The two first arguments of every mutating script: the text, and sequence and time seen.
  var arguments: [RESPArgument] {
    [.string(text), .string("\(seenSequence) \(seenMicroseconds)")]
  }
}

extension OperationID {
  /// Big-endian, as stored and as sorted.
  package var bytes: [UInt8] {
    var result: [UInt8] = []
    result.reserveCapacity(16)
    for word in [high, low] {
      for shift in stride(from: 56, through: 0, by: -8) {
        result.append(UInt8(truncatingIfNeeded: word >> UInt64(shift)))
      }
    }
    return result
  }

  package init?(bytes: some Collection<UInt8>) {
    guard bytes.count == 16 else { return nil }
    var words: (UInt64, UInt64) = (0, 0)
    for (position, byte) in bytes.enumerated() {
      if position < 8 {
        words.0 = words.0 << 8 | UInt64(byte)
      } else {
        words.1 = words.1 << 8 | UInt64(byte)
      }
    }
    self.init(high: words.0, low: words.1)
  }
}

// Watches counters in Redis while a test goes on: settled and held of a cell, read in one command,
// and held against what the limit allows. Its own reading of the bytes (KEYS.md), not the product's.

import Foundation
import NIOConcurrencyHelpers
import TollgateTesting

final class CellWatch: Sendable {
  struct Cell: Sendable, Hashable {
    var settled: Int64 = 0
    var held: Int64 = 0
    var sum: Int64 { settled + held }
  }

  struct Seen: Sendable {
    var polls = 0
    var now: [String: Cell] = [:]
    var most: [String: Int64] = [:]
    var violations: [String] = []
  }

  private let seen = NIOLockedValueBox(Seen())
  private let running = NIOLockedValueBox(true)
  private let ended = NIOLockedValueBox(false)

  /// - Parameter cell: the field, as KEYS.md writes it: `<feature>|<window>`.
  init(_ redis: RedisServerProcess, accounts: [String], cell: String, amount: Int64) throws {
    let connection = try redis.connect()
    let thread = Thread {
      var keys: [String: String] = [:]
      while self.running.withLockedValue({ $0 }) {
        do {
          for account in accounts where keys[account] == nil {
            guard case .array(let found) = try connection.command("KEYS", "tg1:*:a:\(account)")
            else { continue }
            keys[account] = found.first?.string
          }
          let order = keys.sorted { $0.key < $1.key }
          let replies = try connection.pipeline(order.map { ["HGET", $0.value, cell] })
          self.note(zip(order.map(\.key), replies), amount)
        } catch {
          self.seen.withLockedValue { $0.violations.append("Redis cannot be read: \(error)") }
          break
        }
        Thread.sleep(forTimeInterval: 0.002)
      }
      self.ended.withLockedValue { $0 = true }
    }
    thread.start()
  }

  private func note(_ replies: some Sequence<(String, MiniReply)>, _ amount: Int64) {
    seen.withLockedValue { seen in
      for (account, reply) in replies {
        guard let bytes = reply.bytes else { continue }
        guard let numbers = Self.integers(bytes), numbers.count >= 7 else {
          seen.violations.append("\(account): a cell that is none: \(bytes)")
          continue
        }
        let cell = Cell(settled: numbers[1] - numbers[3], held: numbers[2])
        seen.polls += 1
        seen.now[account] = cell
        seen.most[account] = max(seen.most[account] ?? 0, cell.sum)
        if cell.sum > amount {
          seen.violations.append(
            "\(account): settled \(cell.settled) + held \(cell.held) > \(amount)")
        }
      }
    }
  }

  var soFar: Seen { seen.withLockedValue { $0 } }

  func finish() throws -> Seen {
    running.withLockedValue { $0 = false }
    try eventually(within: .seconds(20), "the watch ends") { ended.withLockedValue { $0 } }
    return soFar
  }

  /// MessagePack: nothing but integers, one behind the other.
  private static func integers(_ bytes: [UInt8]) -> [Int64]? {
    var numbers: [Int64] = []
    var rest = bytes[...]
    while let head = rest.popFirst() {
      let (width, isSigned): (Int, Bool)
      switch head {
      case 0x00...0x7F:
        numbers.append(Int64(head))
        continue
      case 0xE0...0xFF:
        numbers.append(Int64(Int8(bitPattern: head)))
        continue
      case 0xCC...0xCF: (width, isSigned) = (1 << Int(head - 0xCC), false)
      case 0xD0...0xD3: (width, isSigned) = (1 << Int(head - 0xD0), true)
      default: return nil
      }
      guard rest.count >= width else { return nil }
      let raw = rest.prefix(width).reduce(UInt64(0)) { $0 << 8 | UInt64($1) }
      rest = rest.dropFirst(width)
      let unused = UInt64(64 - 8 * width)
      numbers.append(
        isSigned ? Int64(bitPattern: raw << unused) >> Int64(unused) : Int64(bitPattern: raw))
    }
    return numbers
  }
}

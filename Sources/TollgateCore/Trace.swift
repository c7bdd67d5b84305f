// A trace of model traffic: TIMESTAMP,ContextTokens,GeneratedTokens, one row per chat request.
//
// The shape is that of the public Azure LLM inference traces, so a real hour can be replayed as
// it is; `TraceGenerator` writes an hour of the same shape (bursts, silent minutes, skewed sizes)
// for machines that have none. Pure: bytes in, rows out, and the reverse; whoever has a file
// reads it. A bad row is an error naming its line, never a skipped row, because a replay ends
// with an audit that counts rows.

/// One request of a trace.
package struct TraceRow: Hashable, Sendable {
  /// Since the Unix epoch; the files carry 100 ns digits, which a millisecond would lose.
  package var nanoseconds: Int64
  package var contextTokens: Int64
  package var generatedTokens: Int64

  package init(nanoseconds: Int64, contextTokens: Int64, generatedTokens: Int64) {
    self.nanoseconds = nanoseconds
    self.contextTokens = contextTokens
    self.generatedTokens = generatedTokens
  }
}

/// A row that cannot be used; lines count from 1, the header included.
package struct TraceError: Error, Hashable, CustomStringConvertible {
  package let line: Int
  package let reason: String

  package init(line: Int, reason: String) {
    self.line = line
    self.reason = reason
  }

  package var description: String { "trace line \(line): \(reason)" }
}

package enum Trace {
  package static let header = "TIMESTAMP,ContextTokens,GeneratedTokens"
  /// The largest token count a row may carry: far above any model, far below overflow in a sum.
  package static let tokensMax: Int64 = 1_000_000_000

  /// Reads a whole trace. Lines end in LF or CR LF; the last one may lack its end. Timestamps
  /// are UTC and must not run backwards.
  package static func parse(_ bytes: [UInt8]) throws(TraceError) -> [TraceRow] {
    var rows: [TraceRow] = []
    var number = 0
    var previous = Int64.min
    for raw in bytes.split(separator: 10, omittingEmptySubsequences: false) {
      number += 1
      let line = raw.last == 13 ? raw.dropLast() : raw
      if number == 1 {
        guard line.elementsEqual(header.utf8) else {
          throw TraceError(line: 1, reason: "the header must be \(header)")
        }
        continue
      }
      if line.isEmpty {
        // Only the end of the file may be empty; whatever follows would be a row after a hole.
        guard raw.endIndex == bytes.endIndex else {
          throw TraceError(line: number, reason: "the line is empty")
        }
        continue
      }
      let row = try parseRow(line, number)
      guard row.nanoseconds >= previous else {
        throw TraceError(line: number, reason: "TIMESTAMP is earlier than the row before")
      }
      previous = row.nanoseconds
      rows.append(row)
    }
    return rows
  }

  /// The text of a trace, LF ended, that `parse` reads back to the same rows (to 100 ns).
  package static func text(_ rows: some Sequence<TraceRow>) -> String {
    var result = header + "\n"
    for row in rows {
      let milliseconds = floorDivide(row.nanoseconds, 1_000_000)
      let stamp = CivilDate.text(WallTime(milliseconds: milliseconds))
      let second = floorDivide(row.nanoseconds, 1_000_000_000)
      let ticks = (row.nanoseconds - second * 1_000_000_000) / 100
      let digits = "\(ticks)"
      result += stamp.prefix(10) + " " + stamp.dropFirst(11).prefix(8) + "."
      result += String(repeating: "0", count: 7 - digits.count) + digits
      result += ",\(row.contextTokens),\(row.generatedTokens)\n"
    }
    return result
  }

  private static func parseRow(
    _ line: ArraySlice<UInt8>, _ number: Int
  ) throws(TraceError) -> TraceRow {
    let fields = line.split(separator: 44, omittingEmptySubsequences: false).map { Array($0) }
    guard fields.count == 3 else {
      throw TraceError(line: number, reason: "3 fields expected, \(fields.count) found")
    }
    guard let nanoseconds = instant(fields[0]) else {
      throw TraceError(
        line: number, reason: "TIMESTAMP is not YYYY-MM-DD HH:MM:SS[.fraction] in UTC")
    }
    guard let context = tokens(fields[1]) else {
      throw TraceError(line: number, reason: "ContextTokens is not within 0 … \(tokensMax)")
    }
    guard let generated = tokens(fields[2]) else {
      throw TraceError(line: number, reason: "GeneratedTokens is not within 0 … \(tokensMax)")
    }
    return TraceRow(
      nanoseconds: nanoseconds, contextTokens: context, generatedTokens: generated)
  }

  private static func tokens(_ field: [UInt8]) -> Int64? {
    guard let value = digits(field[...], 1...10), value <= tokensMax else { return nil }
    return value
  }

  private static func digits(_ field: ArraySlice<UInt8>, _ count: ClosedRange<Int>) -> Int64? {
    guard count.contains(field.count), field.allSatisfy({ (48...57).contains($0) }) else {
      return nil
    }
    return field.reduce(0) { $0 * 10 + Int64($1 - 48) }
  }

  private static func instant(_ field: [UInt8]) -> Int64? {
    guard field.count >= 19, field[4] == 45, field[7] == 45, field[10] == 32, field[13] == 58,
      field[16] == 58,
      let year = digits(field[0..<4], 4...4), (1970...2200).contains(year),
      let month = digits(field[5..<7], 2...2), (1...12).contains(month),
      let day = digits(field[8..<10], 2...2), day >= 1,
      let hour = digits(field[11..<13], 2...2), hour < 24,
      let minute = digits(field[14..<16], 2...2), minute < 60,
      let second = digits(field[17..<19], 2...2), second < 60
    else { return nil }
    let days = CivilDate.days(year: year, month: Int(month), day: Int(day))
    // A day past its month's end would silently become a day of the next month.
    guard CivilDate.civil(fromDays: days).day == Int(day) else { return nil }
    var fraction: Int64 = 0
    if field.count > 19 {
      guard field[19] == 46, let value = digits(field[20...], 1...9) else { return nil }
      fraction = (field.count - 20..<9).reduce(value) { partial, _ in partial * 10 }
    }
    let seconds = ((days * 24 + hour) * 60 + minute) * 60 + second
    return seconds * 1_000_000_000 + fraction
  }
}

/// Writes an hour of code-completion traffic: mostly bursts of tens of rows a second, minutes
/// with none, prompts between a few and some thousand tokens, short answers with a long tail.
package enum TraceGenerator {
  /// (share of rows in 1/1000, tokens at that share): piecewise-linear inverse distributions.
  static let context: [(Int64, Int64)] = [
    (0, 3), (50, 75), (100, 150), (250, 580), (500, 1470), (750, 2750), (900, 5200),
    (950, 7300), (1000, 7437),
  ]
  static let generated: [(Int64, Int64)] = [
    (0, 6), (100, 7), (250, 9), (500, 13), (750, 24), (900, 55), (950, 90), (990, 250),
    (999, 830), (1000, 1900),
  ]

  /// - Parameters:
  ///   - rows: how many requests.
  ///   - seconds: over how long.
  ///   - start: of the first second, in nanoseconds since the Unix epoch.
  package static func rows(
    _ rows: Int, seconds: Int64 = 3600, start: Int64 = 1_700_000_000_000_000_000,
    using random: inout some RandomNumberGenerator
  ) -> [TraceRow] {
    precondition(rows >= 0 && seconds > 0, "a trace has a size and a length")
    // A burst is a stretch of 1 … 20 s; its weight is skewed, and half of all stretches are idle.
    var weights: [Int64] = []
    var second: Int64 = 0
    while second < seconds {
      let length = min(Int64(random.next() % 20) + 1, seconds - second)
      let draw = Int64(random.next() % 10)
      let weight = draw < 5 ? 0 : draw < 8 ? 2 : draw < 9 ? 6 : 15
      for _ in 0..<length { weights.append(Int64(weight)) }
      second += length
    }
    if weights.allSatisfy({ $0 == 0 }) { weights[0] = 1 }
    var cumulative: [Int64] = []
    var total: Int64 = 0
    for weight in weights {
      total += weight
      cumulative.append(total)
    }
    let ticksPerSecond: UInt64 = 10_000_000
    var result: [TraceRow] = []
    result.reserveCapacity(rows)
    for _ in 0..<rows {
      let target = Int64(random.next() % UInt64(total))
      var low = 0
      var high = cumulative.count - 1
      while low < high {
        let middle = (low + high) / 2
        if cumulative[middle] > target { high = middle } else { low = middle + 1 }
      }
      let ticks = Int64(low) * Int64(ticksPerSecond) + Int64(random.next() % ticksPerSecond)
      result.append(
        TraceRow(
          nanoseconds: start + ticks * 100, contextTokens: draw(context, &random),
          generatedTokens: draw(generated, &random)))
    }
    return result.sorted { $0.nanoseconds < $1.nanoseconds }
  }

  private static func draw(
    _ table: [(Int64, Int64)], _ random: inout some RandomNumberGenerator
  ) -> Int64 {
    let share = Int64(random.next() % 1000)
    var lower = table[0]
    for upper in table.dropFirst() {
      if share < upper.0 {
        return lower.1 + (upper.1 - lower.1) * (share - lower.0) / (upper.0 - lower.0)
      }
      lower = upper
    }
    return lower.1
  }
}

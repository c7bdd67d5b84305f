// The RESP writer against hiredis' formatter, which is the oracle.

import CHiredis
import NIOCore
import Testing
import TollgateRedis
import TollgateTesting

@Suite(.blocking) struct RESPWriterTests {
  /// What hiredis formats for the same elements.
  private func oracle(_ elements: [[UInt8]]) -> [UInt8] {
    let storage = unsafe elements.map { element in
      let copy = UnsafeMutablePointer<CChar>.allocate(capacity: element.count + 1)
      for (index, byte) in element.enumerated() {
        unsafe copy[index] = CChar(bitPattern: byte)
      }
      return unsafe copy
    }
    defer { for index in elements.indices { unsafe storage[index].deallocate() } }
    var argv = unsafe storage.map { unsafe UnsafePointer<CChar>?($0) }
    var lengths = elements.map(\.count)
    var target: UnsafeMutablePointer<CChar>?
    let count = unsafe redisFormatCommandArgv(
      &target, Int32(elements.count), &argv, &lengths)
    defer { unsafe redisFreeCommand(target) }
    guard count >= 0, let target = unsafe target else { return [] }
    return (0..<Int(count)).map { unsafe UInt8(bitPattern: target[$0]) }
  }

  @Test func everyKindOfElementIsFormattedAsHiredisDoes() {
    let seed = UInt64.random(in: .min ... .max)
    print("RESPWriter seed \(seed)")
    var random = JitterSource(seed: seed)
    for _ in 0..<500 {
      var buffer = ByteBuffer()
      var writer = RESPWriter()
      var elements: [[UInt8]] = []
      let count = Int.random(in: 1...20, using: &random)
      writer.begin(&buffer, count: count)
      for _ in 0..<count {
        let bytes = (0..<Int.random(in: 0...200, using: &random)).map { _ in
          UInt8.random(in: 0...255, using: &random)
        }
        switch Int.random(in: 0..<6, using: &random) {
        case 0:
          writer.append(bytes, to: &buffer)
          elements.append(bytes)
        case 1:
          writer.append(ByteBuffer(bytes: bytes).readableBytesView, to: &buffer)
          elements.append(bytes)
        case 2:
          writer.append(bytes.dropFirst(3), to: &buffer)
          elements.append([UInt8](bytes.dropFirst(3)))
        case 3:
          let text = String(decoding: bytes, as: UTF8.self)
          writer.append(text, to: &buffer)
          elements.append([UInt8](text.utf8))
        case 4:
          writer.append(literal: "EVALSHA", to: &buffer)
          elements.append([UInt8]("EVALSHA".utf8))
        default:
          let value =
            Int64.random(in: .min ... .max, using: &random)
            >> Int64.random(in: 0...63, using: &random)
          writer.append(integer: value, to: &buffer)
          elements.append([UInt8](String(value).utf8))
        }
      }
      #expect(writer.remaining == 0)
      #expect([UInt8](buffer.readableBytesView) == oracle(elements))
    }
  }

  @Test(arguments: [Int64.min, -1, 0, 1, 9, 10, 99, 100, Int64.max])
  func edgeIntegersAreDecimal(_ value: Int64) {
    var buffer = ByteBuffer()
    RESPWriter.write([.integer(value)], to: &buffer)
    #expect([UInt8](buffer.readableBytesView) == oracle([[UInt8](String(value).utf8)]))
  }

  @Test func commandsFollowEachOtherInOneBuffer() {
    var buffer = ByteBuffer()
    RESPWriter.write(["GET", "a"], to: &buffer)
    RESPWriter.write(["SET", .bytes([0, 255]), 7], to: &buffer)
    let expected =
      oracle([[UInt8]("GET".utf8), [UInt8]("a".utf8)])
      + oracle([[UInt8]("SET".utf8), [0, 255], [UInt8]("7".utf8)])
    #expect([UInt8](buffer.readableBytesView) == expected)
  }
}

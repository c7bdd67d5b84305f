// A script call about several things of one bucket, each of which names keys by their place: it is
// encoded once, and written without an array of all its arguments.

package import NIOCore

package struct BatchEncoding: Sendable {
  /// In the order the script is given them.
  package var keys: [String]
  /// Numbers of the whole call.
  package var head: [UInt8]
  /// Of each part, what names its keys.
  package var parts: [[UInt8]]
}

package protocol BatchedCall: ScriptCall {
  var fence: Fence { get }
  func encoded() -> BatchEncoding
  /// How many arguments come after the fence's text and the head.
  var tailCount: Int { get }
  /// These arguments, in their order.
  func forEachOfTail(_ parts: [[UInt8]], _ body: ([UInt8]) -> Void)
}

extension BatchedCall {
  package var keys: [String] { encoded().keys }

  package var arguments: [RESPArgument] {
    let encoding = encoded()
    var result: [RESPArgument] = [.string(fence.text), .bytes(encoding.head)]
    forEachOfTail(encoding.parts) { result.append(.bytes($0)) }
    return result
  }

  /// The same command as `keys` and `arguments` make, without the arrays in between.
  package func write(into buffer: inout ByteBuffer, library: ScriptLibrary = .shared) {
    let encoding = encoded()
    var writer = RESPWriter()
    writer.begin(&buffer, count: 3 + encoding.keys.count + 2 + tailCount)
    writer.append(literal: "EVALSHA", to: &buffer)
    writer.append(library.sha(script), to: &buffer)
    writer.append(integer: Int64(encoding.keys.count), to: &buffer)
    for key in encoding.keys { writer.append(key, to: &buffer) }
    writer.append(fence.text, to: &buffer)
    writer.append(encoding.head, to: &buffer)
    forEachOfTail(encoding.parts) { writer.append($0, to: &buffer) }
  }
}

// What carries the bytes of a conversation. Everything here happens on the conversation's event
// loop; a transport whose socket lives elsewhere takes it there.

import NIOCore
import TollgateWire

protocol Transport: AnyObject {
  /// Whether the peer takes what it is sent; a change is told by `writabilityChanged`.
  var isWritable: Bool { get }
  /// Sends at once what is given: it is one turn's answers.
  func write(_ bytes: ByteBuffer)
  /// Reading stops soon after it is paused: what had been read before still comes.
  func setReading(_ on: Bool)
  /// Ends the connection behind what was written; the conversation is then told that it is lost.
  func close()
  /// The session takes requests now.
  func sessionReady(frameBytesMax: Int, features: ProtocolFeatures)
  /// The session takes no more requests.
  func sessionDrains()
  /// Whether requests were answered without the conversation since this was last asked.
  func takeActivity() -> Bool
}

extension Transport {
  // What a transport that answers nothing by itself makes of them.
  func sessionReady(frameBytesMax: Int, features: ProtocolFeatures) {}
  func sessionDrains() {}
  func takeActivity() -> Bool { false }
}

/// A conversation over a NIO channel; the handler decides nothing.
final class ChannelTransport: ChannelInboundHandler, Transport {
  typealias InboundIn = ByteBuffer
  typealias OutboundOut = ByteBuffer

  private let conversation: Conversation
  private var context: ChannelHandlerContext?

  init(_ conversation: Conversation) { self.conversation = conversation }

  func channelActive(context: ChannelHandlerContext) {
    self.context = context
    conversation.opened(on: self)
  }

  func channelInactive(context: ChannelHandlerContext) {
    self.context = nil
    conversation.lost()
  }

  func channelRead(context: ChannelHandlerContext, data: NIOAny) {
    conversation.received(unwrapInboundIn(data))
  }

  func channelReadComplete(context: ChannelHandlerContext) { conversation.flushAnswers() }

  func channelWritabilityChanged(context: ChannelHandlerContext) {
    conversation.writabilityChanged()
  }

  func errorCaught(context: ChannelHandlerContext, error: any Error) {
    context.close(promise: nil)
  }

  var isWritable: Bool { context?.channel.isWritable ?? false }

  func write(_ bytes: ByteBuffer) {
    context?.writeAndFlush(wrapOutboundOut(bytes), promise: nil)
  }

  func setReading(_ on: Bool) {
    context?.channel.setOption(.autoRead, value: on).whenFailure { _ in }
  }

  func close() { context?.close(promise: nil) }
}

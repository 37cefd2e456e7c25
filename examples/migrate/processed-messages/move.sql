select 'orders' as scope, message_id as key, processed_at as completed_at
  from processed_messages
 where octet_length(message_id) between 1 and 255

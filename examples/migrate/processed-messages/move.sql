select 'orders' as scope, message_id as key, processed_at as completed_at
  from processed_messages
